/* SPDX-License-Identifier: BSD-3-Clause */
/* PAGE_REQUEST and its response: vfio-user IOMMU extension, PRI; PCIe 10.4. */
#include "iommu/iommu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An answer that is due: sent without the lock. */
struct due {
    bool there;
    struct vfuc *client;
    uint16_t msg_id;
    uint16_t group;
    int error; /* an errno */
    uint32_t code;
};

static void send_due(const struct due *due)
{
    const struct vfio_user_page_response response = {
        .argsz = sizeof(response),
        .group = due->group,
        .code = (uint16_t)due->code,
    };

    if (due->there) {
        vfuc_reply(due->client, due->msg_id, VFIO_USER_PAGE_REQUEST, due->error, &response,
                   sizeof(response));
    }
}

/* Groups. Lock held in all of this. */

/* When nothing is missing any more the group has ended, and is answered. */
static void end_if_done(struct vfuc_iommu *iommu, uint16_t index, struct due *due)
{
    struct page_group *group = &iommu->groups[index];

    if (!group->used || !group->whole || group->unanswered > 0) {
        return;
    }
    *due = (struct due){
        .there = true,
        .client = iommu->client,
        .msg_id = group->msg_id,
        .group = index,
        .error = group->bad ? EINVAL : 0,
        .code = group->code,
    };
    iommu->stats.responses++;
    group->used = false;
}

static void release(struct vfuc_iommu *iommu, struct page_request *request)
{
    request->used = false;
    request->generation++;
    iommu->pages_out -= request->nr_pages;
}

/* Late answers to it find nothing. */
static void forget_group(struct vfuc_iommu *iommu, uint16_t index)
{
    for (uint32_t i = 0; i < iommu->max_requests; i++) {
        struct page_request *request = &iommu->requests[i];

        if (request->used && request->fault.group == index) {
            release(iommu, request);
        }
    }
    iommu->groups[index].unanswered = 0;
}

void page_requests_forget(struct vfuc_iommu *iommu)
{
    for (uint32_t i = 0; i < iommu->max_requests; i++) {
        if (iommu->requests[i].used) {
            release(iommu, &iommu->requests[i]);
        }
    }
    memset(iommu->groups, 0, sizeof(iommu->groups));
}

/* Responses */

/* Lock held. The request of an id; NULL: none. */
static struct page_request *find_request(struct vfuc_iommu *iommu, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    struct page_request *request = slot < iommu->max_requests ? &iommu->requests[slot] : NULL;

    return request != NULL && request->used && request->fault.id == id ? request : NULL;
}

int vfuc_iommu_page_response(vfuc_iommu_t *iommu, uint64_t id, uint32_t code)
{
    struct page_request *request;
    struct page_group *group;
    struct due due = { 0 };
    int err = 0;

    if (code != VFIO_USER_PAGE_RESP_SUCCESS && code != VFIO_USER_PAGE_RESP_INVALID &&
        code != VFIO_USER_PAGE_RESP_FAILURE) {
        return iommu_result(-EINVAL);
    }
    pthread_mutex_lock(&iommu->lock);
    request = find_request(iommu, id);
    if (request == NULL) {
        err = -ENOENT;
    } else {
        group = &iommu->groups[request->fault.group];
        group->code = code > group->code ? code : group->code;
        group->unanswered--;
        release(iommu, request);
        end_if_done(iommu, request->fault.group, &due);
    }
    iommu_begin_sending(iommu);
    pthread_mutex_unlock(&iommu->lock);
    send_due(&due);
    pthread_mutex_lock(&iommu->lock);
    iommu_end_sending(iommu);
    pthread_mutex_unlock(&iommu->lock);
    return iommu_result(err);
}

/* Requests */

/* The entries of one message; a copy: the receiver's buffer is used again. */
struct arrival {
    struct vfio_user_page_request head;
    const uint8_t *entries;
    bool last, stop;
};

static const char *head_fault(const struct message *msg, const struct arrival *a)
{
    const struct vfio_user_page_request *head = &a->head;
    bool no_reply = (msg->hdr->flags & VFIO_USER_F_NO_REPLY) != 0;
    const size_t entry = sizeof(struct vfio_user_page_request_entry);
    size_t room = msg->len - sizeof(*head);

    if (head->argsz != msg->len || head->nr_entries != room / entry || room % entry != 0) {
        return "does not have the size that it says";
    }
    if ((head->flags & ~(uint32_t)(VFIO_USER_PAGE_REQ_F_LAST | VFIO_USER_PAGE_REQ_F_STOP)) != 0 ||
        head->reserved != 0 || head->group >= VFIO_USER_PAGE_GROUPS) {
        return "has unknown flags, or no such group";
    }
    if (a->stop && (msg->space.pasid == VFUC_NO_PASID || head->nr_entries > 0 || !no_reply)) {
        return "is no stop marker";
    }
    if (!a->stop && no_reply == a->last) {
        return "wants an answer where there is none, or none where there is one";
    }
    return NULL;
}

static const char *entry_fault(const struct vfuc_iommu *iommu,
                               const struct vfio_user_page_request_entry *entry)
{
    uint64_t unit = iommu_unit_size(iommu), most = (UINT64_MAX - entry->address) / unit;

    if ((entry->address & (unit - 1)) != 0 || entry->nr_pages == 0 ||
        entry->nr_pages - 1 > most || (entry->perm & PERM_RW) == 0 ||
        (entry->perm & ~(uint32_t)VFIO_USER_PAGE_PERM_MASK) != 0) {
        return "asks for pages that make no sense";
    }
    return NULL;
}

/* Lock held. The group that the message belongs to, from its first message on. */
static struct page_group *enter_group(const struct message *msg, const struct arrival *a,
                                      struct due *old)
{
    struct vfuc_iommu *iommu = msg->iommu;
    struct page_group *group = &iommu->groups[a->head.group];

    if (group->used && group->whole) {
        /* The server has forgotten that one, as after a reset: it uses the index again. */
        forget_group(iommu, a->head.group);
        group->code = VFIO_USER_PAGE_RESP_INVALID;
        end_if_done(iommu, a->head.group, old);
    }
    if (!group->used) {
        *group = (struct page_group){
            .used = true,
            .pasid = msg->space.pasid,
            .attrs = msg->space.attrs,
        };
    }
    if (group->pasid != msg->space.pasid || group->attrs != msg->space.attrs) {
        group->bad = true;
    }
    if (a->last) {
        group->whole = true;
        group->msg_id = msg->hdr->msg_id;
    }
    return group;
}

/* Lock held. NULL: more pages than were agreed on. */
static struct page_request *keep(const struct message *msg, uint16_t index,
                                 const struct vfio_user_page_request_entry *entry)
{
    struct vfuc_iommu *iommu = msg->iommu;
    uint32_t most = iommu->agreed.iommu.pri_max_requests, slot;
    struct page_request *request;

    if (most > iommu->max_requests) {
        most = iommu->max_requests;
    }
    if (iommu->pages_out >= most || entry->nr_pages > most - iommu->pages_out) {
        return NULL;
    }
    /* Each has a page at least, so that there is a free one. */
    do {
        slot = iommu->next_request++ % iommu->max_requests;
    } while (iommu->requests[slot].used);
    request = &iommu->requests[slot];
    request->used = true;
    request->nr_pages = entry->nr_pages;
    request->fault = (vfuc_iommu_fault_t){
        .id = (uint64_t)request->generation << 32 | slot,
        .address = entry->address,
        .size = entry->nr_pages * iommu_unit_size(iommu),
        .pasid = msg->space.pasid,
        .perm = entry->perm,
        .group = index,
    };
    iommu->pages_out += entry->nr_pages;
    iommu->stats.faults += entry->nr_pages;
    return request;
}

/* Lock held. Keeps what is asked for; what there is no room for fails the group. */
static uint32_t keep_entries(const struct message *msg, const struct arrival *a,
                             struct page_group *group, vfuc_iommu_fault_t *faults)
{
    struct vfio_user_page_request_entry entry;
    struct page_request *request;
    uint32_t n = 0;

    for (uint32_t i = 0; i < a->head.nr_entries && !group->bad; i++) {
        memcpy(&entry, a->entries + i * sizeof(entry), sizeof(entry));
        if (entry_fault(msg->iommu, &entry) != NULL) {
            group->bad = true;
            break;
        }
        request = keep(msg, a->head.group, &entry);
        if (request == NULL) {
            group->code = VFIO_USER_PAGE_RESP_FAILURE;
            break;
        }
        group->unanswered++;
        faults[n++] = request->fault;
    }
    return n;
}

static void deliver(struct vfuc_iommu *iommu, const vfuc_iommu_fault_t *fault)
{
    uint32_t code = VFIO_USER_PAGE_RESP_INVALID;

    if (!process_fault(iommu, fault, &code) && iommu->options.fault != NULL) {
        iommu->options.fault(iommu->options.pvt, iommu, fault);
    } else {
        vfuc_iommu_page_response(iommu, fault->id, code);
    }
}

static int serve_entries(const struct message *msg, const struct arrival *a)
{
    struct vfuc_iommu *iommu = msg->iommu;
    struct due old = { 0 }, due = { 0 };
    vfuc_iommu_fault_t *faults;
    struct page_group *group;
    uint32_t n;

    /* More entries than pages were agreed on are not kept, but counted. */
    faults = calloc(a->head.nr_entries + 1, sizeof(*faults));
    if (faults == NULL) {
        return message_refuse(msg, ENOMEM, "found no memory");
    }
    pthread_mutex_lock(&iommu->lock);
    group = enter_group(msg, a, &old);
    n = keep_entries(msg, a, group, faults);
    iommu->stats.refused += group->bad || group->code == VFIO_USER_PAGE_RESP_FAILURE;
    end_if_done(iommu, a->head.group, &due);
    pthread_mutex_unlock(&iommu->lock);
    send_due(&old);
    send_due(&due);
    for (uint32_t i = 0; i < n; i++) {
        deliver(iommu, &faults[i]);
    }
    free(faults);
    return 0;
}

int serve_page_request(struct message *msg)
{
    struct vfuc_iommu *iommu = msg->iommu;
    struct arrival a;
    const char *fault;

    if (msg->len < sizeof(a.head)) {
        return message_refuse(msg, EINVAL, "is too short");
    }
    memcpy(&a.head, msg->payload, sizeof(a.head));
    a.entries = msg->payload + sizeof(a.head);
    a.last = (a.head.flags & VFIO_USER_PAGE_REQ_F_LAST) != 0;
    a.stop = (a.head.flags & VFIO_USER_PAGE_REQ_F_STOP) != 0;
    fault = head_fault(msg, &a);
    if (fault != NULL) {
        return message_refuse(msg, EINVAL, fault);
    }
    if (a.stop) {
        if (iommu->options.pasid_stopped != NULL) {
            iommu->options.pasid_stopped(iommu->options.pvt, iommu, msg->space.pasid);
        }
        return 0;
    }
    return serve_entries(msg, &a);
}
