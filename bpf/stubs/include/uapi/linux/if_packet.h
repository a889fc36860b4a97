/* SPDX-License-Identifier: GPL-2.0-only */
/* Included by bcc's helpers.h; handlers see no packets. */
