/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bit positions, which the language does not let the compiler prove: fills each field with ones and
 * looks at the bytes.
 */

#include <stdio.h>
#include <string.h>

#include "libvfio-user.h"

static int failures;

static void check_bits(const char *name, uint32_t found, unsigned int first, unsigned int width)
{
    uint32_t expected = (uint32_t)(((UINT64_C(1) << width) - 1) << first);

    if (found != expected) {
        fprintf(stderr, "%s: mask %#x, expected %#x\n", name, found, expected);
        failures++;
    }
}

/* Decrementing zero fills an unsigned bit-field with ones, whatever its width. */
#define BITS(type, field, first, width)                                                            \
    do {                                                                                           \
        type value;                                                                                \
        uint32_t raw = 0;                                                                          \
        memset(&value, 0, sizeof(value));                                                          \
        value.field--;                                                                             \
        memcpy(&raw, &value, sizeof(value));                                                       \
        check_bits(#type "." #field, raw, first, width);                                           \
    } while (0)

static void check_header(void)
{
    BITS(vfu_pci_hdr_cmd_t, iose, 0, 1);
    BITS(vfu_pci_hdr_cmd_t, mse, 1, 1);
    BITS(vfu_pci_hdr_cmd_t, bme, 2, 1);
    BITS(vfu_pci_hdr_cmd_t, sce, 3, 1);
    BITS(vfu_pci_hdr_cmd_t, mwie, 4, 1);
    BITS(vfu_pci_hdr_cmd_t, vga, 5, 1);
    BITS(vfu_pci_hdr_cmd_t, pee, 6, 1);
    BITS(vfu_pci_hdr_cmd_t, zero, 7, 1);
    BITS(vfu_pci_hdr_cmd_t, see, 8, 1);
    BITS(vfu_pci_hdr_cmd_t, fbe, 9, 1);
    BITS(vfu_pci_hdr_cmd_t, id, 10, 1);
    BITS(vfu_pci_hdr_cmd_t, res1, 11, 5);

    BITS(vfu_pci_hdr_sts_t, res1, 0, 3);
    BITS(vfu_pci_hdr_sts_t, is, 3, 1);
    BITS(vfu_pci_hdr_sts_t, cl, 4, 1);
    BITS(vfu_pci_hdr_sts_t, c66, 5, 1);
    BITS(vfu_pci_hdr_sts_t, res2, 6, 1);
    BITS(vfu_pci_hdr_sts_t, fbc, 7, 1);
    BITS(vfu_pci_hdr_sts_t, dpd, 8, 1);
    BITS(vfu_pci_hdr_sts_t, devt, 9, 2);
    BITS(vfu_pci_hdr_sts_t, sta, 11, 1);
    BITS(vfu_pci_hdr_sts_t, rta, 12, 1);
    BITS(vfu_pci_hdr_sts_t, rma, 13, 1);
    BITS(vfu_pci_hdr_sts_t, sse, 14, 1);
    BITS(vfu_pci_hdr_sts_t, dpe, 15, 1);

    BITS(vfu_bar_t, mem.region_type, 0, 1);
    BITS(vfu_bar_t, mem.locatable, 1, 2);
    BITS(vfu_bar_t, mem.prefetchable, 3, 1);
    BITS(vfu_bar_t, mem.base_address, 4, 28);

    BITS(vfu_bar_t, io.region_type, 0, 1);
    BITS(vfu_bar_t, io.reserved, 1, 1);
    BITS(vfu_bar_t, io.base_address, 2, 30);
}

static void check_capabilities(void)
{
    BITS(struct pcie_ext_cap_hdr, id, 0, 16);
    BITS(struct pcie_ext_cap_hdr, version, 16, 4);
    BITS(struct pcie_ext_cap_hdr, next, 20, 12);

    BITS(struct mc, msie, 0, 1);
    BITS(struct mc, mmc, 1, 3);
    BITS(struct mc, mme, 4, 3);
    BITS(struct mc, c64, 7, 1);
    BITS(struct mc, pvm, 8, 1);
    BITS(struct mc, res1, 9, 7);

    BITS(struct ma, res1, 0, 2);
    BITS(struct ma, addr, 2, 30);

    BITS(struct mxc, ts, 0, 11);
    BITS(struct mxc, reserved, 11, 3);
    BITS(struct mxc, fm, 14, 1);
    BITS(struct mxc, mxe, 15, 1);

    BITS(struct mtab, tbir, 0, 3);
    BITS(struct mtab, to, 3, 29);

    BITS(struct mpba, pbir, 0, 3);
    BITS(struct mpba, pbao, 3, 29);

    BITS(struct pc, vs, 0, 3);
    BITS(struct pc, pmec, 3, 1);
    BITS(struct pc, res, 4, 1);
    BITS(struct pc, dsi, 5, 1);
    BITS(struct pc, auxc, 6, 3);
    BITS(struct pc, d1s, 9, 1);
    BITS(struct pc, d2s, 10, 1);
    BITS(struct pc, psup, 11, 5);

    BITS(struct pmcs, ps, 0, 2);
    BITS(struct pmcs, res1, 2, 1);
    BITS(struct pmcs, nsfrst, 3, 1);
    BITS(struct pmcs, res2, 4, 4);
    BITS(struct pmcs, pmee, 8, 1);
    BITS(struct pmcs, dse, 9, 4);
    BITS(struct pmcs, dsc, 13, 2);
    BITS(struct pmcs, pmes, 15, 1);
}

static void check_express(void)
{
    BITS(struct pxcaps, ver, 0, 4);
    BITS(struct pxcaps, dpt, 4, 4);
    BITS(struct pxcaps, si, 8, 1);
    BITS(struct pxcaps, imn, 9, 5);
    BITS(struct pxcaps, res1, 14, 2);

    BITS(struct pxdcap, mps, 0, 3);
    BITS(struct pxdcap, pfs, 3, 2);
    BITS(struct pxdcap, etfs, 5, 1);
    BITS(struct pxdcap, l0sl, 6, 3);
    BITS(struct pxdcap, l1l, 9, 3);
    BITS(struct pxdcap, res1, 12, 3);
    BITS(struct pxdcap, rer, 15, 1);
    BITS(struct pxdcap, res2, 16, 2);
    BITS(struct pxdcap, csplv, 18, 8);
    BITS(struct pxdcap, cspls, 26, 2);
    BITS(struct pxdcap, flrc, 28, 1);
    BITS(struct pxdcap, res3, 29, 3);

    BITS(union pxdc, cere, 0, 1);
    BITS(union pxdc, nfere, 1, 1);
    BITS(union pxdc, fere, 2, 1);
    BITS(union pxdc, urre, 3, 1);
    BITS(union pxdc, ero, 4, 1);
    BITS(union pxdc, mps, 5, 3);
    BITS(union pxdc, ete, 8, 1);
    BITS(union pxdc, pfe, 9, 1);
    BITS(union pxdc, appme, 10, 1);
    BITS(union pxdc, ens, 11, 1);
    BITS(union pxdc, mrrs, 12, 3);
    BITS(union pxdc, iflr, 15, 1);

    BITS(union pxlc, aspmc, 0, 2);
    BITS(union pxlc, rsvdp1, 2, 1);
    BITS(union pxlc, rcb, 3, 1);
    BITS(union pxlc, ld, 4, 1);
    BITS(union pxlc, rl, 5, 1);
    BITS(union pxlc, ccc, 6, 1);
    BITS(union pxlc, es, 7, 1);
    BITS(union pxlc, clkreq_en, 8, 1);
    BITS(union pxlc, hawd, 9, 1);
    BITS(union pxlc, lbmie, 10, 1);
    BITS(union pxlc, labie, 11, 1);
    BITS(union pxlc, rsvdp2, 12, 4);

    BITS(struct pxdcap2, ctrs, 0, 4);
    BITS(struct pxdcap2, ctds, 4, 1);
    BITS(struct pxdcap2, arifs, 5, 1);
    BITS(struct pxdcap2, aors, 6, 1);
    BITS(struct pxdcap2, aocs32, 7, 1);
    BITS(struct pxdcap2, aocs64, 8, 1);
    BITS(struct pxdcap2, ccs128, 9, 1);
    BITS(struct pxdcap2, nprpr, 10, 1);
    BITS(struct pxdcap2, ltrs, 11, 1);
    BITS(struct pxdcap2, tphcs, 12, 2);
    BITS(struct pxdcap2, ln, 14, 2);
    BITS(struct pxdcap2, tcs, 16, 1);
    BITS(struct pxdcap2, trs, 17, 1);
    BITS(struct pxdcap2, obffs, 18, 2);
    BITS(struct pxdcap2, effs, 20, 1);
    BITS(struct pxdcap2, eetps, 21, 1);
    BITS(struct pxdcap2, meetp, 22, 2);
    BITS(struct pxdcap2, eprs, 24, 2);
    BITS(struct pxdcap2, eprir, 26, 1);
    BITS(struct pxdcap2, res1, 27, 1);
    BITS(struct pxdcap2, dmwcs, 28, 1);
    BITS(struct pxdcap2, dmwls, 29, 2);
    BITS(struct pxdcap2, frss, 31, 1);

    BITS(union pxdc2, comp_timeout, 0, 4);
    BITS(union pxdc2, comp_timout_dis, 4, 1);
    BITS(union pxdc2, ari, 5, 1);
    BITS(union pxdc2, atomic_req, 6, 1);
    BITS(union pxdc2, atomic_egress_block, 7, 1);
    BITS(union pxdc2, ido_req_en, 8, 1);
    BITS(union pxdc2, ido_cmp_en, 9, 1);
    BITS(union pxdc2, ltr_en, 10, 1);
    BITS(union pxdc2, obff_en, 11, 2);
    BITS(union pxdc2, end_end_tlp_prefix_block, 13, 1);
}

static void check_iommu_capabilities(void)
{
    BITS(struct atsc, iqd, 0, 5);
    BITS(struct atsc, par, 5, 1);
    BITS(struct atsc, gis, 6, 1);
    BITS(struct atsc, ros, 7, 1);
    BITS(struct atsc, amas, 8, 1);
    BITS(struct atsc, res1, 9, 7);

    BITS(union atsctl, stu, 0, 5);
    BITS(union atsctl, res1, 5, 6);
    BITS(union atsctl, amad, 11, 3);
    BITS(union atsctl, amae, 14, 1);
    BITS(union atsctl, en, 15, 1);

    BITS(union prictl, en, 0, 1);
    BITS(union prictl, rst, 1, 1);
    BITS(union prictl, res1, 2, 14);

    BITS(union prists, rf, 0, 1);
    BITS(union prists, uprgi, 1, 1);
    BITS(union prists, res1, 2, 6);
    BITS(union prists, stopped, 8, 1);
    BITS(union prists, res2, 9, 6);
    BITS(union prists, prpr, 15, 1);

    BITS(struct pasidc, res1, 0, 1);
    BITS(struct pasidc, eps, 1, 1);
    BITS(struct pasidc, pms, 2, 1);
    BITS(struct pasidc, trps, 3, 1);
    BITS(struct pasidc, res2, 4, 4);
    BITS(struct pasidc, width, 8, 5);
    BITS(struct pasidc, res3, 13, 3);

    BITS(union pasidctl, en, 0, 1);
    BITS(union pasidctl, epe, 1, 1);
    BITS(union pasidctl, pme, 2, 1);
    BITS(union pasidctl, trpe, 3, 1);
    BITS(union pasidctl, res1, 4, 12);
}

int main(void)
{
    check_header();
    check_capabilities();
    check_express();
    check_iommu_capabilities();
    return failures == 0 ? 0 : 1;
}
