/* SPDX-License-Identifier: GPL-2.0-only */
/* x86-64: the only architecture handlers are built for so far. */
#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
