/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NVM Express 1.4 as a driver sees it: registers, queue entries, numbers and data structures. The
 * figures and sections are those of the NVM Express Base Specification, revision 1.4.
 */

#ifndef NVME_SPEC_H
#define NVME_SPEC_H

#include <stdint.h>

/* All of it is little-endian; so are the hosts that this sample is for. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "written for little-endian hosts");

/* Controller registers (3.1) */

enum nvme_register {
    NVME_REG_CAP = 0x00,
    NVME_REG_VS = 0x08,
    NVME_REG_INTMS = 0x0c,
    NVME_REG_INTMC = 0x10,
    NVME_REG_CC = 0x14,
    NVME_REG_CSTS = 0x1c,
    NVME_REG_NSSR = 0x20,
    NVME_REG_AQA = 0x24,
    NVME_REG_ASQ = 0x28,
    NVME_REG_ACQ = 0x30,
    NVME_REG_END = 0x1000, /* the doorbells begin */
};

#define NVME_VERSION_1_4 0x00010400u

#define NVME_CAP_CQR (UINT64_C(1) << 16) /* queues must be contiguous */
#define NVME_CAP_TO(half_seconds) ((uint64_t)(half_seconds) << 24)
#define NVME_CAP_CSS_NVM (UINT64_C(1) << 37)
#define NVME_CAP_MPSMAX(shift) ((uint64_t)((shift)-12) << 52)

#define NVME_CC_EN 0x1u
#define NVME_CC_CSS(cc) ((cc) >> 4 & 7)
#define NVME_CC_MPS(cc) ((cc) >> 7 & 15)
#define NVME_CC_AMS(cc) ((cc) >> 11 & 7)
#define NVME_CC_SHN(cc) ((cc) >> 14 & 3)
#define NVME_CC_IOSQES(cc) ((cc) >> 16 & 15)
#define NVME_CC_IOCQES(cc) ((cc) >> 20 & 15)
#define NVME_CC_SHN_MASK 0x0000c000u
#define NVME_CC_WRITABLE 0x00fffff1u

#define NVME_CSTS_RDY 0x1u
#define NVME_CSTS_CFS 0x2u
#define NVME_CSTS_SHST_MASK 0xcu
#define NVME_CSTS_SHST_OCCURRING 0x4u
#define NVME_CSTS_SHST_COMPLETE 0x8u

#define NVME_AQA_WRITABLE 0x0fff0fffu

/* Queue entries (4.2, 4.6) */

struct nvme_sgl_descriptor {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3];
    uint8_t type; /* type in bits 7:4, subtype in 3:0 */
};

enum nvme_sgl_type {
    NVME_SGL_DATA_BLOCK = 0x0,
    NVME_SGL_BIT_BUCKET = 0x1,
    NVME_SGL_SEGMENT = 0x2,
    NVME_SGL_LAST_SEGMENT = 0x3,
};

struct nvme_command {
    uint8_t opcode;
    uint8_t flags; /* FUSE in bits 1:0, PSDT in 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2, cdw3;
    uint64_t metadata;
    union {
        struct {
            uint64_t prp1, prp2;
        };
        struct nvme_sgl_descriptor sgl;
    };
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};
_Static_assert(sizeof(struct nvme_command) == 64, "submission queue entry");

#define NVME_FUSE(flags) ((flags)&3)
#define NVME_PSDT(flags) ((flags) >> 6)

struct nvme_completion {
    uint32_t result;
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status; /* phase tag in bit 0 */
};
_Static_assert(sizeof(struct nvme_completion) == 16, "completion queue entry");

/* Status (4.6.1): type in bits 10:8, code in 7:0 */

enum nvme_status {
    NVME_SC_SUCCESS = 0x000,
    NVME_SC_INVALID_OPCODE = 0x001,
    NVME_SC_INVALID_FIELD = 0x002,
    NVME_SC_CID_CONFLICT = 0x003,
    NVME_SC_DATA_TRANSFER_ERROR = 0x004,
    NVME_SC_INTERNAL_ERROR = 0x006,
    NVME_SC_ABORT_REQUESTED = 0x007,
    NVME_SC_ABORTED_SQ_DELETED = 0x008,
    NVME_SC_INVALID_NAMESPACE = 0x00b,
    NVME_SC_SEQUENCE_ERROR = 0x00c,
    NVME_SC_INVALID_SGL_SEGMENT = 0x00d,
    NVME_SC_INVALID_SGL_COUNT = 0x00e,
    NVME_SC_DATA_SGL_LENGTH = 0x00f,
    NVME_SC_SGL_TYPE = 0x011,
    NVME_SC_PRP_OFFSET = 0x013,
    NVME_SC_LBA_OUT_OF_RANGE = 0x080,
    NVME_SC_CAPACITY_EXCEEDED = 0x081,
    NVME_SC_CQ_INVALID = 0x100,
    NVME_SC_INVALID_QID = 0x101,
    NVME_SC_INVALID_QUEUE_SIZE = 0x102,
    NVME_SC_ABORT_LIMIT = 0x103,
    NVME_SC_AER_LIMIT = 0x105,
    NVME_SC_INVALID_VECTOR = 0x108,
    NVME_SC_INVALID_LOG_PAGE = 0x109,
    NVME_SC_INVALID_QUEUE_DELETION = 0x10c,
    NVME_SC_FEATURE_NOT_SAVEABLE = 0x10d,
    NVME_SC_FEATURE_NOT_CHANGEABLE = 0x10e,
    NVME_SC_FEATURE_NOT_NAMESPACE = 0x10f,
    NVME_SC_INVALID_RANGE = 0x180,
    NVME_SC_WRITE_FAULT = 0x280,
    NVME_SC_READ_ERROR = 0x281,
    NVME_SC_COMPARE_FAILURE = 0x285,
};

#define NVME_STATUS_MORE 0x2000u /* the error log says more */
#define NVME_STATUS_DNR 0x4000u  /* the same command would fail again */

/* Opcodes (5, 6) */

enum nvme_admin_opcode {
    NVME_ADMIN_DELETE_SQ = 0x00,
    NVME_ADMIN_CREATE_SQ = 0x01,
    NVME_ADMIN_GET_LOG_PAGE = 0x02,
    NVME_ADMIN_DELETE_CQ = 0x04,
    NVME_ADMIN_CREATE_CQ = 0x05,
    NVME_ADMIN_IDENTIFY = 0x06,
    NVME_ADMIN_ABORT = 0x08,
    NVME_ADMIN_SET_FEATURES = 0x09,
    NVME_ADMIN_GET_FEATURES = 0x0a,
    NVME_ADMIN_ASYNC_EVENT = 0x0c,
    NVME_ADMIN_DOORBELL_BUFFER = 0x7c,
};

enum nvme_io_opcode {
    NVME_IO_FLUSH = 0x00,
    NVME_IO_WRITE = 0x01,
    NVME_IO_READ = 0x02,
    NVME_IO_COMPARE = 0x05,
    NVME_IO_WRITE_ZEROES = 0x08,
    NVME_IO_DATASET_MANAGEMENT = 0x09,
    NVME_IO_VERIFY = 0x0c,
};

#define NVME_RW_FUA (1u << 30)            /* in cdw12 */
#define NVME_WRITE_ZEROES_DEAC (1u << 25) /* in cdw12 */
#define NVME_DSM_DEALLOCATE (1u << 2)     /* in cdw11 */
#define NVME_QUEUE_CONTIGUOUS 1u
#define NVME_CQ_INTERRUPTS 2u

#define NVME_NSID_ALL UINT32_MAX

struct nvme_dsm_range {
    uint32_t attributes;
    uint32_t blocks;
    uint64_t first;
};

/* Identify (5.15) */

enum nvme_cns {
    NVME_CNS_NAMESPACE = 0x00,
    NVME_CNS_CONTROLLER = 0x01,
    NVME_CNS_ACTIVE_LIST = 0x02,
    NVME_CNS_DESCRIPTORS = 0x03,
};

#define NVME_IDENTIFY_SIZE 4096

struct nvme_power_state {
    uint16_t max_power; /* in units of 10 mW */
    uint8_t reserved[30];
};

struct nvme_identify_controller {
    uint16_t vid, ssvid;
    char sn[20], mn[40], fr[8];
    uint8_t rab, ieee[3], cmic, mdts;
    uint16_t cntlid;
    uint32_t ver, rtd3r, rtd3e, oaes, ctratt;
    uint16_t rrls;
    uint8_t reserved102[9], cntrltype, fguid[16];
    uint16_t crdt[3];
    uint8_t reserved134[122];
    uint16_t oacs;
    uint8_t acl, aerl, frmw, lpa, elpe, npss, avscc, apsta;
    uint16_t wctemp, cctemp, mtfa;
    uint32_t hmpre, hmmin;
    uint8_t tnvmcap[16], unvmcap[16];
    uint32_t rpmbs;
    uint16_t edstt;
    uint8_t dsto, fwug;
    uint16_t kas, hctma, mntmt, mxtmt;
    uint32_t sanicap, hmminds;
    uint16_t hmmaxd, nsetidmax, endgidmax;
    uint8_t anatt, anacap;
    uint32_t anagrpmax, nanagrpid, pels;
    uint8_t reserved356[156];
    uint8_t sqes, cqes;
    uint16_t maxcmd;
    uint32_t nn;
    uint16_t oncs, fuses;
    uint8_t fna, vwc;
    uint16_t awun, awupf;
    uint8_t nvscc, nwpc;
    uint16_t acwu;
    uint8_t reserved534[2];
    uint32_t sgls, mnan;
    uint8_t reserved544[224];
    char subnqn[256];
    uint8_t reserved1024[1024];
    struct nvme_power_state psd[32];
    uint8_t vendor[1024];
} __attribute__((packed));
_Static_assert(sizeof(struct nvme_identify_controller) == NVME_IDENTIFY_SIZE, "identify");
_Static_assert(__builtin_offsetof(struct nvme_identify_controller, oacs) == 256, "identify");
_Static_assert(__builtin_offsetof(struct nvme_identify_controller, sqes) == 512, "identify");
_Static_assert(__builtin_offsetof(struct nvme_identify_controller, sgls) == 536, "identify");

#define NVME_OAES_NAMESPACES (1u << 8)
#define NVME_OACS_DOORBELL_BUFFER (1u << 8)
#define NVME_LPA_EFFECTS (1u << 1)
#define NVME_LPA_EXTENDED (1u << 2)
#define NVME_ONCS_COMPARE (1u << 0)
#define NVME_ONCS_DSM (1u << 2)
#define NVME_ONCS_WRITE_ZEROES (1u << 3)
#define NVME_ONCS_FEATURE_SELECT (1u << 4)
#define NVME_ONCS_TIMESTAMP (1u << 6)
#define NVME_ONCS_VERIFY (1u << 7)
#define NVME_VWC_PRESENT 1u
#define NVME_VWC_FLUSH_ALL 6u
#define NVME_SGLS_SUPPORTED 1u
#define NVME_SGLS_BIT_BUCKET (1u << 16)
#define NVME_CTRATT_HOST_ID_128 1u

struct nvme_identify_namespace {
    uint64_t nsze, ncap, nuse;
    uint8_t nsfeat, nlbaf, flbas, mc, dpc, dps, nmic, rescap, fpi, dlfeat;
    uint16_t nawun, nawupf, nacwu, nabsn, nabo, nabspf, noiob;
    uint8_t nvmcap[16];
    uint16_t npwg, npwa, npdg, npda, nows;
    uint8_t reserved74[18];
    uint32_t anagrpid;
    uint8_t reserved96[3], nsattr;
    uint16_t nvmsetid, endgid;
    uint8_t nguid[16], eui64[8];
    struct {
        uint16_t ms;
        uint8_t lbads, rp;
    } lbaf[16];
    uint8_t reserved192[192], vendor[3712];
} __attribute__((packed));
_Static_assert(sizeof(struct nvme_identify_namespace) == NVME_IDENTIFY_SIZE, "identify");
_Static_assert(__builtin_offsetof(struct nvme_identify_namespace, lbaf) == 128, "identify");

enum nvme_descriptor_type {
    NVME_DESCRIPTOR_EUI64 = 1,
    NVME_DESCRIPTOR_NGUID = 2,
    NVME_DESCRIPTOR_UUID = 3,
};

/* Features (5.21.1) */

enum nvme_feature {
    NVME_FEAT_ARBITRATION = 0x01,
    NVME_FEAT_POWER = 0x02,
    NVME_FEAT_LBA_RANGE = 0x03,
    NVME_FEAT_TEMPERATURE = 0x04,
    NVME_FEAT_ERROR_RECOVERY = 0x05,
    NVME_FEAT_WRITE_CACHE = 0x06,
    NVME_FEAT_QUEUES = 0x07,
    NVME_FEAT_COALESCING = 0x08,
    NVME_FEAT_VECTOR = 0x09,
    NVME_FEAT_ATOMICITY = 0x0a,
    NVME_FEAT_ASYNC_EVENTS = 0x0b,
    NVME_FEAT_TIMESTAMP = 0x0e,
    NVME_FEAT_HOST_ID = 0x81,
};

/* Log pages (5.14.1) */

enum nvme_log_page {
    NVME_LOG_ERROR = 0x01,
    NVME_LOG_SMART = 0x02,
    NVME_LOG_FIRMWARE = 0x03,
    NVME_LOG_CHANGED_NAMESPACES = 0x04,
    NVME_LOG_EFFECTS = 0x05,
};

struct nvme_error_entry {
    uint64_t error_count;
    uint16_t sq_id, cid, status, parameter;
    uint64_t lba;
    uint32_t nsid;
    uint8_t vendor, trtype, reserved[2];
    uint64_t command_info;
    uint16_t transport_info;
    uint8_t reserved2[22];
};
_Static_assert(sizeof(struct nvme_error_entry) == 64, "error information");

struct nvme_smart {
    uint8_t critical_warning;
    uint16_t temperature; /* kelvin */
    uint8_t spare, spare_threshold, used, endurance_warning, reserved[25];
    uint64_t units_read[2], units_written[2], reads[2], writes[2];
    uint64_t busy_time[2], power_cycles[2], power_on_hours[2], unsafe_shutdowns[2];
    uint64_t media_errors[2], error_entries[2];
    uint32_t warning_time, critical_time;
    uint16_t sensors[8];
    uint8_t reserved2[296];
} __attribute__((packed));
_Static_assert(sizeof(struct nvme_smart) == 512, "SMART / health");

#define NVME_SMART_TEMPERATURE 0x02u

struct nvme_firmware_log {
    uint8_t active, reserved[7];
    char revision[7][8];
    uint8_t reserved2[448];
};
_Static_assert(sizeof(struct nvme_firmware_log) == 512, "firmware slots");

struct nvme_effects_log {
    uint32_t admin[256], io[256];
    uint8_t reserved[2048];
};
_Static_assert(sizeof(struct nvme_effects_log) == 4096, "command effects");

#define NVME_EFFECT_SUPPORTED 0x1u
#define NVME_EFFECT_CHANGES_DATA 0x2u

/* Asynchronous events (5.2): type in bits 2:0, information in 15:8, log page in 23:16 */

enum nvme_event_type {
    NVME_EVENT_ERROR = 0,
    NVME_EVENT_SMART = 1,
    NVME_EVENT_NOTICE = 2,
    NVME_EVENT_TYPES,
};

#define NVME_EVENT_BAD_DOORBELL 0x00u
#define NVME_EVENT_BAD_DOORBELL_VALUE 0x01u
#define NVME_EVENT_TEMPERATURE 0x01u

#endif /* NVME_SPEC_H */
