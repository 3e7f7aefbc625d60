/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration space of a PCI function: its registers, its capabilities, and what writes and
 * resets do to them. It knows nothing of contexts and clients: what it asks of the device goes
 * through struct pci_config_ops. Control thread.
 */
#ifndef VFU_PCI_PCI_H
#define VFU_PCI_PCI_H

#include "libvfio-user.h"
#include "util/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PCI_MAX_CAPS 128 /* of each class */

struct pci_config;
struct pci_cap_type;

struct pci_cap {
    const struct pci_cap_type *type;
    uint16_t offset;
    uint16_t size;
    uint16_t flags; /* VFU_CAP_FLAG_* */
};

struct pci_cap_list {
    struct pci_cap caps[PCI_MAX_CAPS]; /* in the order of the list */
    unsigned nr;
};

/* What configuration space asks of the floor above. Control thread. */
struct pci_config_ops {
    /* The device's callback for the configuration region; NULL: it has none. */
    ssize_t (*device_access)(void *owner, char *buf, size_t count, uint64_t offset,
                             bool is_write);
    bool (*has_device_access)(void *owner);
    /* Function level reset: 0 or a negative errno. */
    int (*reset_function)(void *owner);
    /* The guest has changed MSI-X enable or function mask. */
    void (*msix_changed)(void *owner, bool enabled, bool masked);
    /* The guest has written ATS, PRI or PASID registers. */
    void (*iommu_changed)(void *owner);
    /* PRI was reset: what is outstanding is to be forgotten. */
    void (*pri_reset)(void *owner);
};

struct pci_bar {
    uint64_t size;
    uint32_t flags; /* VFU_REGION_FLAG_* */
};

/*
 * What may happen to each bit of configuration space. Bits in none of the masks are read-only: only
 * the device changes them. A capability that the device serves itself has no bits in any.
 */
struct pci_masks {
    uint8_t *writable; /* by the guest */
    uint8_t *clearable; /* by the guest, by writing 1 */
    uint8_t *sticky; /* of these, what function level reset leaves (PCIe 6.6.2) */
};

struct pci_config {
    const struct logger *log;
    const struct pci_config_ops *ops;
    void *owner;
    vfu_pci_config_space_t *space; /* NULL before init; then where it is for good */
    size_t size; /* of the buffer, and of each of the masks */
    struct pci_masks masks;
    /* What a reset brings back in the bits that a guest can change; in others: which device it is. */
    uint8_t *initial;
    uint8_t *before; /* the space before the write that is being done */
    vfu_pci_type_t type;
    struct pci_bar bars[PCI_BARS_NR];
    uint64_t rom_size; /* 0: no expansion ROM */
    struct pci_cap_list standard;
    struct pci_cap_list extended;
};

/* Set-up. A zeroed structure with log, ops and owner is the beginning. 0 or a negative errno. */
int pci_config_init(struct pci_config *pci, vfu_pci_type_t type, int hdr_type);
/*
 * Fills in what follows from the BARs, interrupts and capabilities; -ENOMEM. What the space holds
 * now is what it holds after a reset.
 */
int pci_config_realize(struct pci_config *pci, size_t region_size, bool has_intx);
void pci_config_destroy(struct pci_config *pci);

/*
 * One access by the client, of any size within the region: count, or the negative errno of the
 * device's callback or of a function level reset. Other writes complete, whatever they meet: bits
 * that the guest cannot change keep their value. What the device serves itself is written first, so
 * that nothing has changed when the device refuses.
 */
ssize_t pci_config_access(struct pci_config *pci, char *buf, size_t count, uint64_t offset,
                          bool is_write);

/* Whether an access touches Device Control, by which a guest resets the function. */
bool pci_config_is_device_control(const struct pci_config *pci, uint64_t offset, size_t count);

enum pci_reset {
    PCI_RESET_CONVENTIONAL, /* everything that a guest can change is as it was set up */
    PCI_RESET_FUNCTION, /* function level reset: but for the sticky bits */
};

/*
 * Brings back what the device had set up in every bit that a guest can change. What the device
 * serves itself is the device's business.
 */
void pci_config_reset(struct pci_config *pci, enum pci_reset kind);

/*
 * Migration, of a realized device. pci_config_save() fills pci_config_state_size() bytes.
 * pci_config_check_state() says whether as many bytes from another process can be the state of this
 * device: 0, or -EINVAL after a log line that names the first register that differs.
 * pci_config_restore() takes such a state over: every bit that a guest can change. It acts on what
 * MSI-X and PRI say then; ATS, PASID and PRI enables are for the caller, see pci_iommu_read().
 */
size_t pci_config_state_size(const struct pci_config *pci);
void pci_config_save(const struct pci_config *pci, void *buf);
int pci_config_check_state(const struct pci_config *pci, const void *buf);
void pci_config_restore(struct pci_config *pci, const void *buf);

/* See vfu_pci_add_capability() and vfu_pci_find_next_capability(); negative errno. */
ssize_t pci_config_add_capability(struct pci_config *pci, size_t pos, int flags,
                                  const void *data);
ssize_t pci_config_find_capability(const struct pci_config *pci, bool extended, size_t pos,
                                   int id);

/* Takes back the extended capabilities that were added last, down to the first nr. */
void pci_config_keep_extended(struct pci_config *pci, unsigned nr);

/* The registers of the IOMMU capabilities, for those who act on them. Control thread. */
struct pci_iommu_registers {
    bool ats_enabled;
    uint32_t stu; /* log2 of bytes */
    bool pasid_enabled, exec_enabled, priv_enabled;
    bool pri_enabled, pri_failed; /* failed: Response Failure is set */
    uint32_t pri_allocation;
};

/* What the capabilities say that the function can do. */
struct pci_iommu_limits {
    uint32_t ats_queue_depth; /* 1 to 32 invalidations */
    uint32_t pasid_bits;
    bool pasid_exec, pasid_priv;
    uint32_t pri_capacity; /* page requests */
};

/* Shows these limits in the capabilities that there are. */
void pci_iommu_show(struct pci_config *pci, const struct pci_iommu_limits *limits);

void pci_iommu_read(const struct pci_config *pci, struct pci_iommu_registers *regs);
/* Function reset: their defaults. */
void pci_iommu_reset(struct pci_config *pci);

enum pci_pri_event {
    PCI_PRI_STOPPED, /* disabled, and nothing outstanding any more */
    PCI_PRI_RESPONSE_FAILURE,
    PCI_PRI_UNEXPECTED_GROUP,
};

/* What happened to the page request interface, for its status register. */
void pci_pri_event(struct pci_config *pci, enum pci_pri_event event);
/* Disabled with requests outstanding: Stopped reads 0 until PCI_PRI_STOPPED. */
void pci_pri_stopping(struct pci_config *pci);

#endif /* VFU_PCI_PCI_H */
