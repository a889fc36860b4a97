/* SPDX-License-Identifier: GPL-2.0-only */
/* What bcc's helpers.h tests of the kernel configuration. */
#define CONFIG_BPF_SYSCALL 1
