//! What a command line names in the directories where the emulated host has file systems of its own.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The directories where this machine's files are hidden in the emulated host.
const HIDDEN: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// What separates names in a word: words of a shell's command and values of options name files, too.
const SEPARATORS: &[u8] = b" \t\n\r\x0b\x0c,;:=<>|&()'\"";

/// What may be named.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// What exists, and the directories of what does not exist yet.
    pub shared: Vec<PathBuf>,
    /// What does not exist and would be made in a hidden directory itself, which cannot be shared.
    pub made: Vec<PathBuf>,
}

/// Finds what the words of a command line, started in a directory, may name.
pub fn named_where_hidden(directory: &Path, words: &[OsString]) -> Named {
    let mut named = Named::default();
    for name in words.iter().flat_map(|word| names_in(word)) {
        let path = directory.join(name);
        let Some(parent) = path.parent() else { continue };
        if !HIDDEN.iter().any(|hidden| parent.starts_with(hidden)) {
            continue;
        }
        if path.exists() {
            named.shared.push(path);
        } else if HIDDEN.iter().any(|hidden| parent == Path::new(hidden)) {
            named.made.push(path);
        } else if parent.is_dir() {
            named.shared.push(parent.to_owned());
        }
    }
    named
}

/// A word as a whole, and its parts.
fn names_in(word: &OsStr) -> impl Iterator<Item = &OsStr> {
    let parts = word.as_bytes().split(|byte| SEPARATORS.contains(byte)).map(OsStr::from_bytes);
    let parts = parts.filter(move |&part| part != word);
    [word].into_iter().chain(parts).filter(|name| !name.is_empty())
}

/// The order in which to mount: what symbolic links lead to before them, and each directory before what is
/// in it.
pub fn in_order_of_mounting(places: &[PathBuf], named: &[PathBuf]) -> Vec<OsString> {
    let targets = places.iter().chain(named).filter_map(|path| fs::canonicalize(path).ok());
    let (mut targets, mut named) = (targets.collect::<Vec<_>>(), named.to_vec());
    for paths in [&mut targets, &mut named] {
        paths.sort_by_key(|path| path.as_os_str().len());
    }
    targets.into_iter().chain(named).map(PathBuf::into_os_string).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn named(directory: &Path, words: &[&str]) -> Named {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        named_where_hidden(directory, &words)
    }

    /// A directory with `kernel` and `results/` in it.
    fn files() -> TempDir {
        let files = TempDir::new_in("/tmp").unwrap();
        fs::write(files.path().join("kernel"), "").unwrap();
        fs::create_dir(files.path().join("results")).unwrap();
        files
    }

    #[test]
    fn what_exists_is_shared_and_of_a_new_file_its_directory() {
        let files = files();
        let path = |name: &str| files.path().join(name);
        let script =
            format!("cat <{};sort '{}'", path("kernel").display(), path("results/new").display());
        let found = named(Path::new("/"), &["sh", "-c", &script]);
        assert_eq!(found, Named { shared: vec![path("kernel"), path("results")], made: vec![] });
    }

    #[test]
    fn names_are_relative_to_the_working_directory_and_values_of_options() {
        let files = files();
        let found = named(files.path(), &["run", "--kernel=kernel", "id=a,path=results/"]);
        let shared = ["kernel", "results/"].map(|name| files.path().join(name));
        // Any word may be the name of a file to make.
        assert!(shared.iter().all(|path| found.shared.contains(path)), "{found:?}");
    }

    #[test]
    fn a_path_with_separators_in_it_is_found_as_a_whole() {
        let files = files();
        let path = files.path().join("a b");
        fs::write(&path, "").unwrap();
        let found = named(Path::new("/"), &["cat", path.to_str().unwrap()]);
        assert!(found.shared.contains(&path), "{found:?}");
    }

    #[test]
    fn what_would_be_made_in_a_hidden_directory_itself_is_copied_out() {
        let found =
            named(Path::new("/"), &["tee", "/tmp/no-such-file", "/run/no-such/file", "/tmpfs/x"]);
        assert_eq!(found, Named { shared: vec![], made: vec!["/tmp/no-such-file".into()] });
    }

    #[test]
    fn names_elsewhere_and_the_hidden_directories_themselves_are_left_alone() {
        let words = ["/bin/sh", "/tmp", "/run/", "relative", "/usr/tmp/x", ""];
        assert_eq!(named(Path::new("/usr"), &words), Named::default());
    }

    #[test]
    fn targets_of_links_are_mounted_before_them_and_directories_before_their_files() {
        let files = files();
        let link = files.path().join("l");
        std::os::unix::fs::symlink(files.path().join("results"), &link).unwrap();
        let named = [files.path().join("kernel"), link.clone(), files.path().to_owned()];
        let order = in_order_of_mounting(&["/".into()], &named);
        let expected = [
            Path::new("/"),
            files.path(),
            &named[0],
            &files.path().join("results"),
            files.path(),
            &link,
            &named[0],
        ];
        assert_eq!(order, expected.map(|path| path.as_os_str().to_owned()));
    }
}
