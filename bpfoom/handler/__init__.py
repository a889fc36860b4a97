# SPDX-License-Identifier: Apache-2.0
"""HandlerObject to attached handler: kernel features, load, link, pins. Needs root."""
