# SPDX-License-Identifier: Apache-2.0
"""Policies: finding them, their cards and typed parameters, rendering them to C text."""
