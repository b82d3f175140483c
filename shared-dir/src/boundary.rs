//! Where a share ends below: mounts that are interfaces of the host's kernel.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatfs;
use rustix::io::Errno;

/// File systems that are no files (magic numbers of linux/magic.h). Reading them may block for ever,
/// change the host, or show memory of processes.
const KERNEL_INTERFACES: [u32; 20] = [
    0x0187,      // autofs
    0x5a3c_69f0, // apparmorfs
    0x6c6f_6f70, // binderfs
    0x4249_4e4d, // binfmt_misc
    0xcafe_4a11, // bpf
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6265_6570, // configfs
    0x6462_6720, // debugfs
    0x1cd1,      // devpts
    0xde5e_81e4, // efivarfs
    0x6573_5543, // fusectl
    0x6e73_6673, // nsfs
    0x9fa0,      // proc
    0x6165_676c, // pstore
    0x0765_5821, // resctrl
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x6265_6572, // sysfs
    0x7472_6163, // tracefs
];

/// Whether the file belongs to an interface of the kernel. To be asked where file systems meet.
pub fn is_kernel_interface(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(KERNEL_INTERFACES.contains(&(fstatfs(file)?.f_type as u32)))
}
