//! On whose behalf a thread works.
//!
//! File-system IDs and capabilities belong to a thread, so what is set here does not affect other
//! threads, and is reset before the call ends.

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// While it lives, the thread creates files as a user and group of the guest's.
#[derive(Debug)]
pub struct ActingAs(());

impl ActingAs {
    /// Takes on the guest's IDs where this process is root. Elsewhere nothing changes: files belong to
    /// this process's user.
    pub fn guest(uid: u32, gid: u32) -> Result<Option<Self>, Errno> {
        let (own_uid, own_gid) = (geteuid().as_raw(), getegid().as_raw());
        if own_uid != 0 || (uid, gid) == (own_uid, own_gid) {
            return Ok(None);
        }
        let acting = Self(());
        set_group(gid);
        set_user(uid);
        if set_group(gid) != gid || set_user(uid) != uid {
            return Err(Errno::PERM);
        }
        // The guest's kernel has checked access, with groups that we do not know.
        let mut sets = capabilities(None)?;
        sets.effective |= CapabilitySet::DAC_OVERRIDE & sets.permitted;
        set_capabilities(None, sets)?;
        Ok(Some(acting))
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        // This user is root: with its ID, Linux gives the capabilities back too (capabilities(7)).
        set_user(geteuid().as_raw());
        set_group(getegid().as_raw());
    }
}

/// Whose a file is that the guest's user `uid` makes.
pub fn owner(uid: u32) -> u32 {
    match geteuid().as_raw() {
        0 => uid,
        own => own,
    }
}

/// Sets the thread's file-system user ID, and gives the one before. Changes nothing where it may not.
fn set_user(uid: u32) -> u32 {
    // SAFETY: no memory is involved; glibc makes the system call for this thread only.
    unsafe { libc::setfsuid(uid) as u32 }
}

/// Sets the thread's file-system group ID, and gives the one before. Changes nothing where it may not.
fn set_group(gid: u32) -> u32 {
    // SAFETY: as in `set_user`.
    unsafe { libc::setfsgid(gid) as u32 }
}

/// While it lives, writes and truncations clear set-user-ID and set-group-ID bits, as those of users
/// other than root do.
#[derive(Debug)]
pub struct WithoutFsetid(CapabilitySets);

impl WithoutFsetid {
    /// Gives the capability up where the thread has it.
    pub fn new() -> Result<Option<Self>, Errno> {
        let sets = capabilities(None)?;
        if !sets.effective.contains(CapabilitySet::FSETID) {
            return Ok(None);
        }
        let effective = sets.effective - CapabilitySet::FSETID;
        set_capabilities(None, CapabilitySets { effective, ..sets })?;
        Ok(Some(Self(sets)))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        // It is still permitted, so this cannot fail; if it did, the thread would have less power, not
        // more.
        let _ = set_capabilities(None, self.0);
    }
}
