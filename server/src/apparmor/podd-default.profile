# What AppArmor adds to a container that asks for RuntimeDefault: the kernel's interfaces to the whole node stay
# closed even where a capability or a mount of the container opens them. podd carries the compiled form
# (podd-default.bin, `make apparmor`) and loads it when it starts.
@{PROC}=/proc/
profile podd-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Whoever manages the node may stop a container; its processes may signal each other.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=podd-default,
  ptrace (trace,read,tracedby,readby) peer=podd-default,

  deny mount,

  deny @{PROC}/kcore rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/sysrq-trigger rwklx,
  # Of /proc/sys only what belongs to the container's own namespaces: net, shared memory, message queues, its name.
  deny @{PROC}/sys/[^fnk]** wklx,
  deny @{PROC}/sys/f[^s]** wklx,
  deny @{PROC}/sys/fs/[^m]** wklx,
  deny @{PROC}/sys/n[^e]** wklx,
  deny @{PROC}/sys/k[^e]** wklx,
  deny @{PROC}/sys/kernel/[^hms]** wklx,
  deny @{PROC}/sys/kernel/{modprobe,sysrq,hotplug,seccomp/**} wklx,

  # Of /sys only cgroups.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
