/* SPDX-License-Identifier: BSD-3-Clause */
/* Page requests to the client's IOMMU: groups, credits, late answers, and processes as PASIDs. */
#include "iommu_fixture.h"

#include <time.h>

#define REQUEST VFIO_USER_PAGE_REQUEST
#define LAST VFIO_USER_PAGE_REQ_F_LAST
#define STOP VFIO_USER_PAGE_REQ_F_STOP
#define SUCCESS VFIO_USER_PAGE_RESP_SUCCESS
#define INVALID VFIO_USER_PAGE_RESP_INVALID
#define FAILURE VFIO_USER_PAGE_RESP_FAILURE
#define MAX_FAULTS 64
#define PATIENCE_S 20

/* What the callbacks were told; nothing is answered unless code says so. */
struct seen {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    vfuc_iommu_fault_t faults[MAX_FAULTS];
    unsigned nr;
    int code; /* -1: later */
    vfuc_iommu_domain_t *domain; /* whose calls are tried from the callback */
    uint32_t stopped;
    int unmap_error, attach_error, map_result;
};

static struct seen seen;

static void on_fault(void *pvt, vfuc_iommu_t *iommu, const vfuc_iommu_fault_t *fault)
{
    struct seen *s = pvt;
    int code;

    pthread_mutex_lock(&s->lock);
    s->faults[s->nr++ % MAX_FAULTS] = *fault;
    code = s->code;
    if (s->domain != NULL) {
        s->map_result = vfuc_iommu_map(s->domain, fault->address, RAM, PAGE, RW);
        s->unmap_error = vfuc_iommu_unmap(s->domain, fault->address, PAGE) == 0 ? 0 : errno;
        s->attach_error = vfuc_iommu_attach(iommu, 1, s->domain) == 0 ? 0 : errno;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (code >= 0) {
        assert_int_equal(vfuc_iommu_page_response(iommu, fault->id, (uint32_t)code), 0);
    }
}

static void on_stop(void *pvt, vfuc_iommu_t *iommu, uint32_t pasid)
{
    struct seen *s = pvt;

    (void)iommu;
    pthread_mutex_lock(&s->lock);
    s->stopped = pasid;
    pthread_mutex_unlock(&s->lock);
}

static void answer_with(int code)
{
    pthread_mutex_lock(&seen.lock);
    seen.code = code;
    pthread_mutex_unlock(&seen.lock);
}

static vfuc_iommu_fault_t wait_fault(unsigned nth)
{
    struct timespec deadline;
    vfuc_iommu_fault_t fault;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&seen.lock);
    while (seen.nr <= nth) {
        if (pthread_cond_timedwait(&seen.changed, &seen.lock, &deadline) == ETIMEDOUT) {
            pthread_mutex_unlock(&seen.lock);
            fail_msg("fault %u did not come", nth);
        }
    }
    fault = seen.faults[nth % MAX_FAULTS];
    pthread_mutex_unlock(&seen.lock);
    return fault;
}

static int setup(void **state)
{
    static struct fixture f;
    static const vfuc_iommu_options_t options = {
        .fault = on_fault, .pasid_stopped = on_stop, .pvt = &seen,
    };

    memset(&seen, 0, sizeof(seen));
    seen.code = -1;
    seen.stopped = ME;
    pthread_mutex_init(&seen.lock, NULL);
    pthread_cond_init(&seen.changed, NULL);
    fixture_start(&f, FULL_VERSION, &options);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture_end(*state);
    pthread_cond_destroy(&seen.changed);
    pthread_mutex_destroy(&seen.lock);
    return 0;
}

#define MAX_ENTRIES 20

struct request {
    struct vfio_user_page_request head;
    struct vfio_user_page_request_entry entries[MAX_ENTRIES];
} __attribute__((packed));

static struct request request_of(uint16_t group, uint32_t flags, uint64_t address, uint32_t pages)
{
    struct request r = {
        .head = { .argsz = 32, .flags = flags, .group = group, .nr_entries = 1 },
        .entries = { { .address = address, .nr_pages = pages, .perm = RW } },
    };

    return r;
}

static uint16_t send_request(struct fixture *f, const struct request *r, uint32_t pasid)
{
    const struct vfio_user_pasid_prefix p = { .pasid = pasid };
    bool last = (r->head.flags & LAST) != 0;

    return fake_server_send(&f->server, REQUEST, last ? 0 : VFIO_USER_F_NO_REPLY,
                            pasid == ME ? NULL : &p, r, r->head.argsz);
}

static uint16_t ask_pages(struct fixture *f, uint16_t group, uint32_t flags, uint64_t address,
                          uint32_t pages)
{
    const struct request r = request_of(group, flags, address, pages);

    return send_request(f, &r, ME);
}

/* The code of the response, which is checked; or a negative errno. */
static int response(struct fixture *f, uint16_t id, uint16_t group)
{
    struct vfio_user_page_response r;
    size_t len;
    int error = fake_server_reply(&f->server, id, &r, sizeof(r), &len);

    if (error != 0) {
        return -error;
    }
    assert_int_equal(len, sizeof(r));
    assert_int_equal(r.argsz, sizeof(r));
    assert_int_equal(r.group, group);
    return r.code;
}

static void test_one(void **state)
{
    struct fixture *f = *state;
    struct request r = request_of(511, LAST, 7 * PAGE, 3);
    vfuc_iommu_fault_t fault;
    uint16_t id;

    r.entries[0].perm = R | VFUC_IOMMU_PRIV;
    id = send_request(f, &r, 9);
    fault = wait_fault(0);
    assert_int_equal(fault.pasid, 9);
    assert_int_equal(fault.address, 7 * PAGE);
    assert_int_equal(fault.size, 3 * PAGE);
    assert_int_equal(fault.perm, R | VFUC_IOMMU_PRIV);
    assert_int_equal(fault.group, 511);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, fault.id, INVALID), 0);
    assert_int_equal(response(f, id, 511), INVALID);
    assert_fails(vfuc_iommu_page_response(f->iommu, fault.id, SUCCESS), ENOENT);
}

/* PRI-1, PRI-2: groups of many messages, answered once, in any order, with the worst. */
static void test_groups(void **state)
{
    struct fixture *f = *state;
    uint16_t id, other;

    ask_pages(f, 3, 0, 0, 1);
    ask_pages(f, 3, 0, PAGE, 1);
    other = ask_pages(f, 4, LAST, 8 * PAGE, 1);
    id = ask_pages(f, 3, LAST, 2 * PAGE, 1);
    assert_int_equal(wait_fault(3).address, 2 * PAGE);
    assert_int_equal(wait_fault(2).group, 4);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(3).id, SUCCESS), 0);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(1).id, INVALID), 0);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(2).id, SUCCESS), 0);
    assert_int_equal(response(f, other, 4), SUCCESS);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(0).id, SUCCESS), 0);
    assert_int_equal(response(f, id, 3), INVALID);
    /* The same group again, answered from the callback. */
    answer_with(SUCCESS);
    assert_int_equal(response(f, ask_pages(f, 3, LAST, 0, 1), 3), SUCCESS);
}

static void test_many_entries(void **state)
{
    struct fixture *f = *state;
    struct request r = request_of(0, LAST, 0, 1);

    r.head.nr_entries = 16;
    r.head.argsz = 16 + 16 * 16;
    for (uint32_t i = 0; i < 16; i++) {
        r.entries[i] = (struct vfio_user_page_request_entry){ i * PAGE, 1, R };
    }
    answer_with(SUCCESS);
    assert_int_equal(response(f, send_request(f, &r, ME), 0), SUCCESS);
    assert_int_equal(seen.nr, 16);
    /* And again: the credits have come back. */
    assert_int_equal(response(f, send_request(f, &r, ME), 0), SUCCESS);
}

/* PRI-7: a server that asks for more than was agreed on is told to stop. */
static void test_credits(void **state)
{
    struct fixture *f = *state;
    uint16_t id = ask_pages(f, 0, LAST, 0, 15);

    assert_int_equal(response(f, ask_pages(f, 1, LAST, PAGE, 2), 1), FAILURE);
    assert_int_equal(response(f, ask_pages(f, 1, LAST, PAGE, UINT32_MAX), 1), FAILURE);
    /* A group of which a part had no room fails, also when there is room again. */
    ask_pages(f, 2, 0, PAGE, 1);
    ask_pages(f, 2, 0, PAGE, 1);
    assert_int_equal(response(f, ask_pages(f, 1, LAST, PAGE, 1), 1), FAILURE);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(1).id, SUCCESS), 0);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(0).id, SUCCESS), 0);
    assert_int_equal(response(f, id, 0), SUCCESS);
    answer_with(SUCCESS);
    assert_int_equal(response(f, ask_pages(f, 2, LAST, PAGE, 1), 2), FAILURE);
    assert_int_equal(response(f, ask_pages(f, 1, LAST, PAGE, 16), 1), SUCCESS);
}

static void test_malformed(void **state)
{
    struct fixture *f = *state;
    struct request wrong[10];
    uint16_t id;

    for (size_t i = 0; i < 10; i++) {
        wrong[i] = request_of(0, LAST, 0, 1);
    }
    wrong[0].head.argsz = 33;
    wrong[1].head.nr_entries = 2;
    wrong[2].head.nr_entries = UINT32_MAX;
    wrong[3].head.flags |= 4;
    wrong[4].head.group = 512;
    wrong[5].head.reserved = 1;
    wrong[6].entries[0].address = 1;
    wrong[7].entries[0].nr_pages = 0;
    wrong[8].entries[0].perm = 16 | R;
    wrong[9].entries[0] = (struct vfio_user_page_request_entry){ -PAGE, 2, R };
    for (size_t i = 0; i < 10; i++) {
        id = fake_server_send(&f->server, REQUEST, 0, NULL, &wrong[i], 32);
        assert_int_equal(response(f, id, 0), -EINVAL);
    }
    assert_int_equal(response(f, fake_server_send(&f->server, REQUEST, 0, NULL, wrong, 15), 0),
                     -EINVAL);
    /* A stop marker wants no answer, and has a PASID. */
    wrong[0] = request_of(0, LAST | STOP, 0, 1);
    wrong[0].head.nr_entries = 0;
    wrong[0].head.argsz = 16;
    id = fake_server_send(&f->server, REQUEST, 0, NULL, wrong, 16);
    assert_int_equal(response(f, id, 0), -EINVAL);
    assert_int_equal(seen.nr, 0);
    /* A bad message of a group spoils the group. */
    ask_pages(f, 5, 0, 1, 1);
    assert_int_equal(response(f, ask_pages(f, 5, LAST, 0, 1), 5), -EINVAL);
    /* So does another prefix. */
    answer_with(SUCCESS);
    ask_pages(f, 5, 0, 0, 1);
    wrong[0] = request_of(5, LAST, 0, 1);
    assert_int_equal(response(f, send_request(f, &wrong[0], 2), 5), -EINVAL);
    assert_int_equal(response(f, ask_pages(f, 5, LAST, 0, 1), 5), SUCCESS);
}

/* An answer that comes when others are being waited for in the same place. */
static void test_late_answer(void **state)
{
    struct fixture *f = *state;
    uint16_t id = ask_pages(f, 0, LAST, 0, 1);
    uint64_t late = wait_fault(0).id;

    assert_int_equal(vfuc_iommu_page_response(f->iommu, late, SUCCESS), 0);
    assert_int_equal(response(f, id, 0), SUCCESS);
    /* Requests are kept in as many places as were proposed. */
    answer_with(SUCCESS);
    for (unsigned i = 1; i < 512; i++) {
        assert_int_equal(response(f, ask_pages(f, 0, LAST, 0, 1), 0), SUCCESS);
    }
    answer_with(-1);
    ask_pages(f, 0, LAST, 0, 1);
    wait_fault(512);
    assert_fails(vfuc_iommu_page_response(f->iommu, late, SUCCESS), ENOENT);
}

/* As after a reset: the server begins anew, and nobody minds what is answered late. */
static void test_index_again(void **state)
{
    struct fixture *f = *state;
    uint16_t first = ask_pages(f, 0, LAST, 0, 16), second;

    wait_fault(0);
    second = ask_pages(f, 0, LAST, 0, 16);
    assert_int_equal(response(f, first, 0), INVALID);
    wait_fault(1);
    assert_fails(vfuc_iommu_page_response(f->iommu, wait_fault(0).id, SUCCESS), ENOENT);
    assert_int_equal(vfuc_iommu_page_response(f->iommu, wait_fault(1).id, SUCCESS), 0);
    assert_int_equal(response(f, second, 0), SUCCESS);
}

static void test_stop_marker(void **state)
{
    struct fixture *f = *state;
    struct request r = request_of(0, STOP, 0, 0);

    r.head.nr_entries = 0;
    r.head.argsz = 16;
    send_request(f, &r, 77);
    answer_with(SUCCESS);
    assert_int_equal(response(f, ask_pages(f, 0, LAST, 0, 1), 0), SUCCESS);
    assert_int_equal(seen.stopped, 77);
    assert_int_equal(seen.nr, 1);
}

/* What waits for the server cannot be called from the thread that hears it. */
static void test_calls_from_callback(void **state)
{
    struct fixture *f = *state;

    seen.domain = f->domain;
    answer_with(SUCCESS);
    assert_int_equal(response(f, ask_pages(f, 0, LAST, 0, 1), 0), SUCCESS);
    assert_int_equal(seen.map_result, 0);
    assert_int_equal(seen.unmap_error, EDEADLK);
    assert_int_equal(seen.attach_error, EDEADLK);
}

static void test_nobody_cares(void **state)
{
    struct fixture f;

    (void)state;
    fixture_start(&f, FULL_VERSION, NULL);
    assert_int_equal(response(&f, ask_pages(&f, 0, LAST, 0, 1), 0), INVALID);
    fixture_end(&f);
}

/* Requests do not outlive their connection. */
static void test_reconnect(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_fault_t fault;

    ask_pages(f, 0, LAST, 0, 16);
    fault = wait_fault(0);
    fake_server_hang_up(&f->server);
    assert_int_equal(vfuc_iommu_reconnect(f->iommu), 0);
    /* Before the new server has asked for anything. */
    assert_fails(vfuc_iommu_page_response(f->iommu, fault.id, SUCCESS), ENOENT);
    answer_with(SUCCESS);
    assert_int_equal(response(f, ask_pages(f, 1, LAST, 0, 16), 1), SUCCESS);
    assert_fails(vfuc_iommu_page_response(f->iommu, fault.id, SUCCESS), ENOENT);
}

static void test_disconnect(void **state)
{
    struct fixture *f = *state;
    vfuc_iommu_fault_t fault;

    ask_pages(f, 0, LAST, 0, 16);
    fault = wait_fault(0);
    vfuc_iommu_disconnect(f->iommu);
    assert_fails(vfuc_iommu_page_response(f->iommu, fault.id, SUCCESS), ENOENT);
}

/* PASIDs that stand for a process */

static int ask_pointer(struct fixture *f, const void *p, uint32_t pages, uint32_t perm)
{
    struct request r = request_of(1, LAST, (uintptr_t)p, pages);

    r.entries[0].perm = perm;
    return response(f, send_request(f, &r, 6), 1);
}

static void test_process(void **state)
{
    struct fixture *f = *state;
    uint8_t *arena = f->ram + 16 * PAGE;
    vfuc_iommu_translation_t t;

    assert_int_equal(vfuc_iommu_bind_process(f->iommu, 6, arena, 8 * PAGE, PROT_READ), 0);
    vfuc_iommu_translate(f->iommu, 6, (uintptr_t)arena, &t);
    assert_int_equal(t.perm, 0);
    assert_int_equal(ask_pointer(f, arena + PAGE, 2, R), SUCCESS);
    vfuc_iommu_translate(f->iommu, 6, (uintptr_t)arena + 2 * PAGE, &t);
    assert_int_equal(t.perm, R);
    assert_int_equal(t.address, RAM + 18 * PAGE);
    vfuc_iommu_translate(f->iommu, 6, (uintptr_t)arena, &t);
    assert_int_equal(t.perm, 0);
    assert_int_equal(ask_pointer(f, arena, 1, RW), INVALID);
    assert_int_equal(ask_pointer(f, arena, 1, R | X), INVALID);
    assert_int_equal(ask_pointer(f, arena - PAGE, 1, R), INVALID);
    assert_int_equal(ask_pointer(f, arena + 7 * PAGE, 2, R), INVALID);
    assert_int_equal(ask_pointer(f, arena, 3, R), SUCCESS);
    assert_int_equal(vfuc_iommu_evict(f->iommu, 6, arena, 2 * PAGE), 0);
    vfuc_iommu_translate(f->iommu, 6, (uintptr_t)arena + PAGE, &t);
    assert_int_equal(t.perm, 0);
    assert_int_equal(fake_server_count(&f->server, VFIO_USER_ATS_INVALIDATE), 1);
    assert_int_equal(vfuc_iommu_unbind_process(f->iommu, 6), 0);
    assert_int_equal(fake_server_count(&f->server, VFIO_USER_ATS_INVALIDATE), 2);
    assert_int_equal(seen.nr, 0);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_one),
        CASE(test_groups),
        CASE(test_many_entries),
        CASE(test_credits),
        CASE(test_malformed),
        CASE(test_late_answer),
        CASE(test_index_again),
        CASE(test_stop_marker),
        CASE(test_calls_from_callback),
        cmocka_unit_test(test_nobody_cares),
        CASE(test_reconnect),
        CASE(test_disconnect),
        CASE(test_process),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
