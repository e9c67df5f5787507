#!/bin/bash
# Becomes the first process of a host of its own: files of this machine, but what it writes stays with it.
# host.sh FOLDER NAME ADDRESS REPOSITORY, in fresh network, mount, pid, uts and ipc namespaces.
set -e
folder=$1 name=$2 address=$3 repository=$4
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o size=2g "$name" "$folder"
mkdir "$folder"/{written,work,root}
root=$folder/root
mount -t overlay -o lowerdir=/,upperdir="$folder/written",workdir="$folder/work" "$name" "$root"
mount -t tmpfs -o mode=1777,size=2g tmp "$root/tmp"
case $repository in /tmp/*) mkdir -p "$root$repository" && mount --bind "$repository" "$root$repository";; esac
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mkdir -p "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r what major minor <<<"$device"
  mknod -m 666 "$root/dev/$what" c "$major" "$minor"
done
mkdir -p "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${stream%%:*}" "$root/dev/${stream##*:}"; done
mount -t tmpfs -o size=2g,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o size=50m,mode=755 run "$root/run"
mkdir -p "$root/run/sshd"
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > "$root/etc/hosts"
echo "$name" > "$root/etc/hostname"
: > "$root/etc/resolv.conf"
cd "$root"
pivot_root . mnt
cd /
umount -l /mnt
ip link set lo up
# The user must be able to reach the interpreter and the repository, wherever they lie.
for path in "$repository" "$(readlink -f "$repository/.venv/bin/python")"; do
  while [ "$path" != / ]; do chmod o+x "$path"; path=$(dirname "$path"); done
done
groupadd -g 2001 me
useradd -m -u 2001 -g 2001 -s /bin/bash -p '*' me
ln -s "$repository" /home/me/hetero
mkdir -m 700 /home/me/.ssh /etc/ssh/own
ssh-keygen -q -t ed25519 -N '' -f /home/me/.ssh/id_ed25519
chown -R me:me /home/me/.ssh
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/own/key
cat > /etc/ssh/own/config <<END
ListenAddress $address:22
HostKey /etc/ssh/own/key
PasswordAuthentication no
UsePAM no
MaxStartups 100
END
while [ -z "$(ip -o -4 addr show | grep -F " $address/")" ]; do sleep 0.1; done
touch /ready
/usr/sbin/sshd -f /etc/ssh/own/config -E /tmp/sshd.log
trap : CHLD
while :; do sleep 3600 & wait $! || true; done
