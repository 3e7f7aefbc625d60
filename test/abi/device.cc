// SPDX-License-Identifier: BSD-3-Clause
//
// The headers are clean C++, and a device written in C++ links with the library and runs: a class
// with every callback there is, and a client, in C++ too, that has each of them called.

#include "libvfio-user-iommu.h"
#include "libvfio-user.h"
#include "pci_caps/ats.h"
#include "pci_caps/common.h"
#include "pci_caps/dsn.h"
#include "pci_caps/msi.h"
#include "pci_caps/msix.h"
#include "pci_caps/pasid.h"
#include "pci_caps/pm.h"
#include "pci_caps/pri.h"
#include "pci_caps/px.h"
#include "pci_defs.h"
#include "vfio-user-client.h"
#include "vfio-user.h"

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace
{

constexpr size_t bar_size = 4096;
constexpr uint64_t ram_addr = 0x10000;
constexpr size_t ram_size = 0x4000;
constexpr uint64_t doorbell = bar_size - 4; // a write here starts DMA and an interrupt

void check(bool good, const char *what)
{
    if (!good) {
        throw std::system_error(errno, std::generic_category(), what);
    }
}

class device
{
public:
    explicit device(const std::string &path)
        : ctx(vfu_create_ctx(VFU_TRANS_SOCK, path.c_str(), 0, this, VFU_DEV_TYPE_PCI))
    {
        check(ctx != nullptr, "vfu_create_ctx");
        try {
            set_up();
        } catch (...) {
            vfu_destroy_ctx(ctx);
            throw;
        }
    }

    ~device()
    {
        vfu_destroy_ctx(ctx);
    }

    device(const device &) = delete;
    device &operator=(const device &) = delete;

    // One client, until it has gone.
    void serve()
    {
        check(vfu_attach_ctx(ctx) == 0, "vfu_attach_ctx");
        check(vfu_run_ctx(ctx) < 0 && errno == ENOTCONN, "vfu_run_ctx");
    }

    // The callbacks, which the functions below bring here.

    ssize_t access(char *buf, size_t count, loff_t offset, bool is_write)
    {
        called.insert("access");
        if (!is_write) {
            memcpy(buf, &registers.at(static_cast<size_t>(offset)), count);
            return static_cast<ssize_t>(count);
        }
        memcpy(&registers.at(static_cast<size_t>(offset)), buf, count);
        if (offset == static_cast<loff_t>(doorbell)) {
            write_memory();
            check(vfu_irq_trigger(ctx, 0) == 0, "vfu_irq_trigger");
        }
        return static_cast<ssize_t>(count);
    }

    int reset(vfu_reset_type_t type)
    {
        called.insert(type == VFU_RESET_DEVICE ? "reset" : "reset, lost connection");
        return 0;
    }

    int quiesce()
    {
        called.insert("quiesce");
        return 0;
    }

    void dma_register(const vfu_dma_info_t *info)
    {
        called.insert(info->vaddr != nullptr ? "dma_register" : "dma_register, not mapped");
    }

    void dma_unregister(const vfu_dma_info_t *)
    {
        called.insert("dma_unregister");
    }

    void irq_state(uint32_t, uint32_t, bool mask)
    {
        called.insert(mask ? "mask" : "unmask");
    }

    void log(int, const char *msg)
    {
        called.insert("log");
        lines.emplace_back(msg);
    }

    int transition(vfu_migr_state_t)
    {
        called.insert("transition");
        given = 0;
        return 0;
    }

    ssize_t read_data(void *buf, uint64_t count)
    {
        size_t n = std::min<size_t>(count, registers.size() - given);

        called.insert("read_data");
        memcpy(buf, registers.data() + given, n);
        given += n;
        return static_cast<ssize_t>(n);
    }

    ssize_t write_data(const void *buf, uint64_t count)
    {
        called.insert("write_data");
        memcpy(registers.data(), buf, std::min<size_t>(count, registers.size()));
        return static_cast<ssize_t>(count);
    }

    void iommu_state(const vfu_iommu_state_t *)
    {
        called.insert("iommu_state");
    }

    int invalidate(uint32_t, bool, uint64_t, uint64_t, vfu_invalidation_t *)
    {
        called.insert("invalidate");
        return 0;
    }

    void done(vfu_dma_request_t *request, int error)
    {
        called.insert("done");
        if (error == 0) {
            vfu_dma_release(ctx, request);
        }
    }

    std::set<std::string> called;

private:
    void set_up();
    void add_capabilities();
    void add_migration();
    void add_iommu();
    void write_memory();

    vfu_ctx_t *ctx;
    std::array<char, bar_size> registers = {};
    std::vector<std::string> lines;
    size_t given = 0;
};

// Calls a member function of the device that a context belongs to. Exceptions end here: behind it
// is C.
template <auto member, typename Result, typename... Args>
Result call(Result failure, vfu_ctx_t *ctx, Args... args) noexcept
{
    try {
        return (static_cast<device *>(vfu_get_private(ctx))->*member)(args...);
    } catch (const std::exception &e) {
        fprintf(stderr, "%s\n", e.what());
        errno = EIO;
        return failure;
    }
}

template <auto member, typename... Args> void tell(vfu_ctx_t *ctx, Args... args) noexcept
{
    (static_cast<device *>(vfu_get_private(ctx))->*member)(args...);
}

void device::add_capabilities()
{
    pmcap pm = {};
    pxcap px = {};

    pm.hdr.id = PCI_CAP_ID_PM;
    px.hdr.id = PCI_CAP_ID_EXP;
    px.pxcaps.ver = 2;
    px.pxdcap.flrc = 1;
    check(vfu_pci_add_capability(ctx, 0, 0, &pm) > 0, "vfu_pci_add_capability");
    check(vfu_pci_add_capability(ctx, 0, 0, &px) > 0, "vfu_pci_add_capability");
}

void device::add_migration()
{
    vfu_migration_callbacks_t migration = {};

    migration.version = VFU_MIGR_CALLBACKS_VERS;
    migration.transition = [](vfu_ctx_t *c, vfu_migr_state_t state) {
        return call<&device::transition>(-1, c, state);
    };
    migration.read_data = [](vfu_ctx_t *c, void *buf, uint64_t count) {
        return call<&device::read_data>(ssize_t(-1), c, buf, count);
    };
    migration.write_data = [](vfu_ctx_t *c, void *buf, uint64_t count) {
        return call<&device::write_data>(ssize_t(-1), c, buf, count);
    };
    check(vfu_setup_device_migration_callbacks(ctx, &migration) == 0,
          "vfu_setup_device_migration_callbacks");
}

void device::add_iommu()
{
    vfu_iommu_config_t iommu = {};

    iommu.size = sizeof(iommu);
    iommu.ats = true;
    iommu.state = [](vfu_ctx_t *c, const vfu_iommu_state_t *state) {
        tell<&device::iommu_state>(c, state);
    };
    iommu.invalidate = [](vfu_ctx_t *c, uint32_t pasid, bool global, uint64_t first, uint64_t last,
                          vfu_invalidation_t *inv) {
        return call<&device::invalidate>(-1, c, pasid, global, first, last, inv);
    };
    check(vfu_setup_device_iommu(ctx, &iommu) == 0, "vfu_setup_device_iommu");
}

void device::set_up()
{
    check(vfu_setup_log(ctx, [](vfu_ctx_t *c, int level, const char *msg) {
              tell<&device::log>(c, level, msg);
          }, LOG_DEBUG) == 0, "vfu_setup_log");
    check(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) == 0, "vfu_pci_init");
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0, 0);
    vfu_pci_set_class(ctx, 0xff, 0, 0);
    vfu_pci_get_config_space(ctx)->hdr.rid = 1;
    add_capabilities();
    check(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, bar_size,
                           [](vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool write) {
                               return call<&device::access>(ssize_t(-1), c, buf, count, offset,
                                                            write);
                           },
                           VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, nullptr, 0, -1, 0) == 0,
          "vfu_setup_region");
    check(vfu_setup_device_reset_cb(ctx, [](vfu_ctx_t *c, vfu_reset_type_t type) {
              return call<&device::reset>(-1, c, type);
          }) == 0, "vfu_setup_device_reset_cb");
    vfu_setup_device_quiesce_cb(ctx, [](vfu_ctx_t *c) { return call<&device::quiesce>(-1, c); });
    check((vfu_setup_device_dma)(ctx, 16,
                                 [](vfu_ctx_t *c, vfu_dma_info_t *info) {
                                     tell<&device::dma_register>(c, info);
                                 },
                                 [](vfu_ctx_t *c, vfu_dma_info_t *info) {
                                     tell<&device::dma_unregister>(c, info);
                                 }) == 0,
          "vfu_setup_device_dma");
    check(vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) == 0, "vfu_setup_device_nr_irqs");
    check(vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ,
                                       [](vfu_ctx_t *c, uint32_t start, uint32_t count, bool mask) {
                                           tell<&device::irq_state>(c, start, count, mask);
                                       }) == 0,
          "vfu_setup_irq_state_callback");
    add_migration();
    add_iommu();
    check(vfu_realize_ctx(ctx) == 0, "vfu_realize_ctx");
}

// Writes the registers to the guest's memory, by both interfaces.
void device::write_memory()
{
    std::unique_ptr<char[]> room(new char[dma_sg_size()]);
    auto *sg = reinterpret_cast<dma_sg_t *>(room.get());
    auto *addr = reinterpret_cast<vfu_dma_addr_t>(ram_addr);
    vfu_dma_request_t request = {};

    check((vfu_addr_to_sgl)(ctx, addr, 64, sg, 1, PROT_WRITE) == 1, "vfu_addr_to_sgl");
    check((vfu_sgl_write)(ctx, sg, 1, registers.data(), VFU_SGL_DIRECT_ACCESS) == 0,
          "vfu_sgl_write");
    request.addr = ram_addr;
    request.len = 64;
    request.pasid = VFU_NO_PASID;
    request.prot = PROT_READ;
    request.sgl = sg;
    request.max_nr_sgs = 1;
    request.done = [](vfu_ctx_t *c, vfu_dma_request_t *r, int error) {
        tell<&device::done>(c, r, error);
    };
    check(vfu_dma_resolve(ctx, &request) == 0, "vfu_dma_resolve");
}

// A client that has every callback called.
void drive(const std::string &path)
{
    std::unique_ptr<vfuc_t, decltype(&vfuc_disconnect)> client(vfuc_connect(path.c_str(), nullptr),
                                                               vfuc_disconnect);
    std::vector<char> ram(ram_size), state(bar_size);
    vfuc_memory_t memory = {};
    eventfd_t count = 0;
    const uint32_t value = 0x12345678;
    const int event = eventfd(0, EFD_CLOEXEC), file = memfd_create("ram", MFD_CLOEXEC);

    check(client != nullptr, "vfuc_connect");
    check(event >= 0 && file >= 0 && ftruncate(file, ram_size) == 0, "descriptors");
    memory.iova = ram_addr;
    memory.size = ram_size;
    memory.prot = PROT_READ | PROT_WRITE;
    memory.fd = file;
    check(vfuc_dma_map(client.get(), &memory) == 0, "vfuc_dma_map");
    check(vfuc_irq_set_eventfds(client.get(), VFIO_PCI_INTX_IRQ_INDEX, 0, 1, &event) == 0,
          "vfuc_irq_set_eventfds");
    check(vfuc_irq_mask(client.get(), VFIO_PCI_INTX_IRQ_INDEX, 0, 1, true) == 0, "mask");
    check(vfuc_irq_mask(client.get(), VFIO_PCI_INTX_IRQ_INDEX, 0, 1, false) == 0, "unmask");
    check(vfuc_region_write(client.get(), VFIO_PCI_BAR0_REGION_INDEX, 0, &value, 4) >= 0, "write");
    check(vfuc_region_write(client.get(), VFIO_PCI_BAR0_REGION_INDEX, doorbell, &value, 4) >= 0,
          "doorbell");
    check(eventfd_read(event, &count) == 0 && count == 1, "interrupt");
    check(pread(file, ram.data(), ram_size, 0) == static_cast<ssize_t>(ram_size) &&
              memcmp(ram.data(), &value, sizeof(value)) == 0, "memory");
    check(vfuc_migration_set_state(client.get(), VFIO_USER_DEVICE_STATE_STOP_COPY) == 0, "save");
    check(vfuc_migration_read(client.get(), state.data(), bar_size) == bar_size, "save");
    check(memcmp(state.data(), &value, sizeof(value)) == 0, "state");
    check(vfuc_migration_set_state(client.get(), VFIO_USER_DEVICE_STATE_RESUMING) == 0, "load");
    check(vfuc_migration_write(client.get(), state.data(), bar_size) == 0, "load");
    check(vfuc_migration_set_state(client.get(), VFIO_USER_DEVICE_STATE_RUNNING) == 0, "run");
    check(vfuc_dma_unmap(client.get(), &memory) == 0, "vfuc_dma_unmap");
    check(vfuc_reset(client.get()) == 0, "vfuc_reset");
    close(event);
    close(file);
}

// invalidate needs a client with an IOMMU: that it compiles is enough here.
int missing(const std::set<std::string> &called)
{
    int missing = 0;

    for (const char *name :
         { "access", "reset", "reset, lost connection", "quiesce", "dma_register", "dma_unregister",
           "mask", "unmask", "log", "transition", "read_data", "write_data", "iommu_state",
           "done" }) {
        if (called.count(name) == 0) {
            fprintf(stderr, "callback '%s' was not called\n", name);
            missing++;
        }
    }
    return missing;
}

int run(const std::string &path)
{
    device dev(path);
    std::thread server([&dev] { dev.serve(); });

    try {
        drive(path);
    } catch (const std::exception &e) {
        fprintf(stderr, "%s\n", e.what());
        // Without a client the server's thread would wait for ever.
        _exit(EXIT_FAILURE);
    }
    server.join();
    return missing(dev.called);
}

} // namespace

int main()
{
    char dir[] = "/tmp/vfu-abi-XXXXXX";
    int failed = 1;

    if (mkdtemp(dir) == nullptr) {
        perror("mkdtemp");
        return 1;
    }
    try {
        failed = run(std::string(dir) + "/socket");
    } catch (const std::exception &e) {
        fprintf(stderr, "%s\n", e.what());
    }
    rmdir(dir);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
