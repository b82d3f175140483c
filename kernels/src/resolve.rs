//! What `--kernel` and `--modules` stand for.

use std::path::{Path, PathBuf};

use rustix::system::uname;
use testvm::kernel::{GuestKernel, KernelError};

use crate::{DebianKernel, FindError, KernelCache, Say};

/// The kernel of these arguments: the host's own, one of Debian's by its name, a directory with a kernel and its
/// modules, a directory in which one was built, or an image with the directory of its modules. `say` gets a line
/// when something is fetched.
pub fn find_kernel(
    asked: Option<&Path>,
    modules: Option<&Path>,
    say: Say<'_>,
) -> Result<GuestKernel, FindError> {
    let Some(asked) = asked else {
        return host_kernel(Path::new("/"), &uname().release().to_string_lossy());
    };
    if named(asked).is_some() && modules.is_some() {
        return Err(KernelError::TwoModules(asked.to_owned()).into());
    }
    Ok(GuestKernel::at(&locate(asked, say)?, modules)?)
}

/// Only the image of a kernel, to boot it.
pub fn find_image(asked: &Path, say: Say<'_>) -> Result<PathBuf, FindError> {
    if is_image(asked) {
        return locate(asked, say);
    }
    Ok(find_kernel(Some(asked), None, say)?.image().to_owned())
}

/// Whether what is asked for is an image, without modules.
pub fn is_image(asked: &Path) -> bool {
    named(asked).is_none() && !asked.is_dir()
}

/// Where a kernel is. One of Debian's is fetched if it is not there.
fn locate(asked: &Path, say: Say<'_>) -> Result<PathBuf, FindError> {
    if let Some(kernel) = named(asked) {
        return Ok(KernelCache::of_user()?.path(kernel, None, say)?);
    }
    let is_bare = asked.components().count() == 1 && asked.is_relative();
    if is_bare && !asked.exists() {
        return Err(FindError::UnknownName { name: asked.display().to_string() });
    }
    Ok(asked.to_owned())
}

/// A name is not a path: a directory of the same name is `./NAME`.
fn named(asked: &Path) -> Option<&'static DebianKernel> {
    DebianKernel::named(asked.to_str()?)
}

/// The kernel that runs on a host, where distributions have it.
fn host_kernel(root: &Path, release: &str) -> Result<GuestKernel, FindError> {
    let modules = root.join("lib/modules").join(release);
    let images = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    match images.iter().find(|image| image.exists()) {
        Some(image) => GuestKernel::from_image(image, Some(&modules))
            .map_err(|source| FindError::HostKernel { release: release.to_owned(), source }),
        None => Err(FindError::NoHostKernel { release: release.to_owned(), images: images.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn find(asked: &str) -> Result<GuestKernel, FindError> {
        find_kernel(Some(Path::new(asked)), None, &|line| panic!("nothing to say, but {line}"))
    }

    #[test]
    fn what_is_neither_a_name_nor_a_file_is_refused_with_the_names() {
        let message = find("debian-6.13").unwrap_err().to_string();
        assert!(message.contains("cannot read debian-6.13: No such file"), "{message}");
        for kernel in DebianKernel::ALL {
            assert!(message.contains(kernel.name), "{message}");
        }
        let message = find("./debian-6.13").unwrap_err().to_string();
        assert!(message.contains("cannot read ./debian-6.13"), "{message}");
        assert!(find("/etc").unwrap_err().to_string().contains("/etc has no kernel in it"));
        assert!(find("").is_err());
    }

    #[test]
    fn names_are_no_images_and_have_modules_of_their_own() {
        assert!(!is_image(Path::new("debian-6.1")) && !is_image(Path::new("/")));
        assert!(is_image(Path::new("./debian-6.1")) && is_image(Path::new("bzImage")));
        let (name, modules) = (Path::new("debian-6.1"), Path::new("/lib/modules"));
        let error = find_kernel(Some(name), Some(modules), &|_| {}).unwrap_err();
        assert!(matches!(error, FindError::Kernel(KernelError::TwoModules(_))), "{error}");
    }

    #[test]
    fn a_host_without_its_kernel_is_an_error_that_says_what_was_looked_for() {
        let root = TempDir::new().unwrap();
        let message = host_kernel(root.path(), "6.1.0").unwrap_err().to_string();
        for part in
            ["Linux 6.1.0", "boot/vmlinuz-6.1.0", "lib/modules/6.1.0/vmlinuz", "debian-6.12,"]
        {
            assert!(message.contains(part), "{message:?} should say {part:?}");
        }
        fs::create_dir(root.path().join("boot")).unwrap();
        fs::write(root.path().join("boot/vmlinuz-6.1.0"), "").unwrap();
        let error = host_kernel(root.path(), "6.1.0").unwrap_err();
        let FindError::HostKernel { source, .. } = &error else { panic!("{error}") };
        assert!(
            source.to_string().contains("is empty") && error.to_string().contains("debian-6.12,")
        );
    }
}
