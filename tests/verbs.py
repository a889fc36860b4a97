# SPDX-License-Identifier: Apache-2.0
"""Every command, by what it is to somebody who is not root; tests/unit/test_help.py counts."""

from __future__ import annotations

# What needs root, as somebody would type it.
REFUSED = {
    "bpfoom": (),
    "bpfoom attach": ("--cgroup", "/", "--policy", "largest-task"),
    "bpfoom update": ("--cgroup", "/", "--set", "min=1M"),
    "bpfoom detach": ("--all",),
    "bpfoom apply": ("-f", "/dev/null"),
    "bpfoom agent": ("-f", "/dev/null"),
    "bpfoom marks list": (),
    "bpfoom marks show": ("/",),
    "bpfoom marks set": ("*=avoid",),
    "bpfoom marks clear": ("--all",),
    "bpfoom marks sync": (),
    "bpfoom list": (),
    "bpfoom show": ("--cgroup", "/"),
    "bpfoom status": (),
    "bpfoom events": (),
    "bpfoom explain": ("--cgroup", "/"),
    "bpfoom trigger": (),
    "bpfoom stats": (),
    "bpfoom doctor": (),
    "bpfoom demo": ("--here",),
    "bpfoom scenario run": ("--here", "largest-task"),
}
MORE = [
    ("list", "--tree", "--all"),
    ("detach", "--cgroup", "/"),
    ("events", "--follow"),
    ("trigger", "--cgroup", "/", "--psi", "full:50ms/1s"),
    ("trigger", "--cgroup", "/", "--off"),
    ("stats", "--openmetrics"),
    ("stats", "--listen", "0"),
    ("marks", "sync", "--follow"),
]
# These need no root, and know nothing of cgroups.
OPEN = {
    *("bpfoom policies", "bpfoom render", "bpfoom check", "bpfoom compile", "bpfoom new"),
    *("bpfoom completion", "bpfoom man", "bpfoom cache", "bpfoom cache clear", "bpfoom kernel"),
    *("bpfoom kernel build", "bpfoom kernel status", "bpfoom kernel patches", "bpfoom vm"),
    *("bpfoom vm run", "bpfoom vm shell", "bpfoom vm start", "bpfoom vm stop", "bpfoom marks"),
    *("bpfoom scenario", "bpfoom scenario list", "bpfoom report"),
}
