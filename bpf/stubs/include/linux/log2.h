/* SPDX-License-Identifier: GPL-2.0-only */
/* Included by bcc's helpers.h for macros that handlers do not use. */
