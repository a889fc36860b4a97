/* SPDX-License-Identifier: GPL-2.0-only */
/* Instruction classes: bcc's copy of the uapi header wants the file, not what is in it. */
