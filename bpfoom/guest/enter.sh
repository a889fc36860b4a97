# SPDX-License-Identifier: Apache-2.0
# Mounts for a command in a chroot, then the command: run by chroot.py, as root, in new mount and
# pid namespaces. Arguments: root, number of binds, "ro|rw SOURCE TARGET" for each, the command.
set -eu

# "/" of a bare chroot is no mount point and cannot be made private: go on without.
mount --make-rprivate / 2>/dev/null || :

root=$1 binds=$2
shift 2
# A container may forbid a fresh /proc; objtool is content with the one that is there.
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$binds" -gt 0 ]; do
    mkdir -p "$root$3"
    mount --bind "$2" "$root$3"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root$3"
    shift 3
    binds=$((binds - 1))
done
exec "$@"
