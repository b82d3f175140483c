//! Kernel modules, from the initramfs.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
};

use agent_protocol::{Failure, ModuleEntry, ModuleIndex, ModuleIndexError, module_name};
use rustix::system::{delete_module, finit_module};

/// Loads a module after those that it needs. One that is loaded already is EEXIST, as with
/// insmod; for one that is built in there is nothing to do.
pub fn load(name: &str, parameters: &str) -> Result<(), Failure> {
    let name = module_name(name);
    match index()?.0.get(&name) {
        None => Err(Failure::Refused(format!("the initramfs has no module {name}"))),
        Some(ModuleEntry::BuiltIn) => Ok(()),
        Some(ModuleEntry::Loadable { dependencies }) => {
            for dependency in dependencies {
                load_dependency(dependency)?;
            }
            Ok(insert(&name, parameters)?)
        }
    }
}

fn index() -> Result<ModuleIndex, Failure> {
    let text = fs::read_to_string("/modules/index")
        .map_err(|_| Failure::Refused("the initramfs has no modules".to_owned()))?;
    text.parse().map_err(|error: ModuleIndexError| Failure::Refused(error.to_string()))
}

/// A dependency that fails must not look as if the module itself had.
fn load_dependency(name: &str) -> Result<(), Failure> {
    match insert(name, "") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::Refused(format!("cannot load {name}, which it needs: {error}")))
        }
        _ => Ok(()),
    }
}

fn insert(name: &str, parameters: &str) -> io::Result<()> {
    let file = File::open(format!("/modules/{name}.ko"))?;
    Ok(finit_module(file, &CString::new(parameters)?, 0)?)
}

/// Unloads a module; EAGAIN while it is in use.
pub fn unload(name: &str) -> io::Result<()> {
    let name = CString::new(module_name(name))?;
    Ok(delete_module(&name, libc::O_NONBLOCK)?)
}
