/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc carries the uapi header itself; this one only leads to it. */
#include <bcc/bpf.h>
