//! Names: listed, moved, removed, and more of them than there are descriptors.

use std::collections::HashMap;
use std::fs;

use proptest::prelude::*;
use rustix::io::Errno;

use crate::descriptors::Descriptors;
use crate::server::Mode;
use crate::test_guest::{Guest, parse};
use crate::wire::*;

fn guest() -> Guest {
    Guest::new(Mode::ReadWrite, &["file", "other", "directory/", "directory/below"])
}

#[test]
fn a_file_is_one_node_by_all_of_its_names() {
    let guest = guest();
    let file = guest.find("file").unwrap();
    let link = guest.ask(Opcode::Link, ROOT, LinkIn { oldnodeid: file.nodeid }, &["link"]);
    let link: EntryOut = parse(link.unwrap());
    assert_eq!((link.nodeid, link.attr.ino, link.attr.nlink), (file.nodeid, file.attr.ino, 2));
    assert_eq!(guest.find("file").unwrap().nodeid, file.nodeid);
    assert_ne!(guest.find("other").unwrap().nodeid, file.nodeid);
    // Three lookups and one link.
    guest.forget(file.nodeid, 2);
    guest.attributes(file.nodeid).unwrap();
    guest.forget(file.nodeid, 1);
    assert_eq!(guest.attributes(file.nodeid).unwrap_err(), Errno::STALE);
    assert_ne!(guest.find("file").unwrap().nodeid, file.nodeid);
}

#[test]
fn the_root_is_never_forgotten() {
    let guest = guest();
    guest.forget(ROOT, u64::MAX);
    guest.find("file").unwrap();
}

#[test]
fn that_there_is_nothing_may_be_remembered_too() {
    let guest = guest();
    let reply = guest.ask(Opcode::Lookup, ROOT, [0_u8; 0], &["none"]).unwrap();
    let entry: EntryOut = parse(reply);
    assert_eq!((entry.nodeid, entry.entry_valid), (0, VALID_SECONDS));
    let file = guest.find("file").unwrap();
    assert_eq!((file.entry_valid, file.attr_valid), (VALID_SECONDS, VALID_SECONDS));
}

#[test]
fn a_directory_is_listed_in_replies_of_any_size() {
    let guest = guest();
    for number in 0..300 {
        fs::write(guest.path(&format!("directory/{number:0>100}")), "").unwrap();
    }
    let directory = guest.find("directory").unwrap().nodeid;
    for (size, plus) in [(160, false), (4096, false), (1 << 20, false), (4096, true), (300, true)] {
        let listing = guest.list(directory, size, plus).unwrap();
        assert_eq!(listing.len(), 303);
        for (name, kind, node) in listing {
            let expected = if name.starts_with('.') { libc::DT_DIR } else { libc::DT_REG };
            assert_eq!(kind, u32::from(expected));
            assert_eq!(node != 0, plus && !name.starts_with('.'), "{name}");
            if node != 0 {
                assert_eq!(guest.lookup(directory, &name).unwrap().nodeid, node);
                guest.forget(node, 2);
            }
        }
        assert_eq!(guest.server.inodes.len(), 2);
    }
}

#[test]
fn offsets_that_are_none_list_something_or_are_errors() {
    let guest = guest();
    let fh = guest.open_directory(ROOT).unwrap();
    for offset in [7, 1 << 40, i64::MAX as u64, u64::MAX] {
        let read = ReadIn { fh, offset, size: 4096, ..ReadIn::default() };
        let _ = guest.ask(Opcode::ReadDir, ROOT, read, &[]);
    }
    let read = ReadIn { fh, size: 4096, ..ReadIn::default() };
    assert!(!guest.ask(Opcode::ReadDir, ROOT, read, &[]).unwrap().is_empty());
}

#[test]
fn files_are_moved_with_what_is_open() {
    let guest = guest();
    let directory = guest.find("directory").unwrap().nodeid;
    let file = guest.find("file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDWR).unwrap();
    guest.rename((ROOT, "file"), (directory, "moved"), 0).unwrap();
    guest.write(fh, 0, b"FI").unwrap();
    assert_eq!(fs::read(guest.path("directory/moved")).unwrap(), b"FIle");
    assert_eq!(guest.lookup(directory, "moved").unwrap().nodeid, file);
    let no_replace = libc::RENAME_NOREPLACE;
    let refused = guest.rename((ROOT, "other"), (directory, "moved"), no_replace);
    assert_eq!(refused.unwrap_err(), Errno::EXIST);
    guest.rename((ROOT, "other"), (directory, "moved"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(guest.find("other").unwrap().nodeid, file);
    guest.rename((ROOT, "other"), (directory, "moved"), 0).unwrap();
    assert_eq!(guest.find("other").unwrap_err(), Errno::NOENT);
    let into_itself = guest.rename((ROOT, "directory"), (directory, "loop"), 0);
    assert_eq!(into_itself.unwrap_err(), Errno::INVAL);
}

#[test]
fn directories_are_removed_when_they_are_empty() {
    let guest = guest();
    let none = [0_u8; 0];
    let rmdir = |name| guest.ask(Opcode::Rmdir, ROOT, none, &[name]).map(drop);
    assert_eq!(rmdir("directory").unwrap_err(), Errno::NOTEMPTY);
    assert_eq!(rmdir("file").unwrap_err(), Errno::NOTDIR);
    assert!(matches!(guest.unlink(ROOT, "directory"), Err(Errno::ISDIR | Errno::PERM)));
    let directory = guest.find("directory").unwrap().nodeid;
    guest.unlink(directory, "below").unwrap();
    rmdir("directory").unwrap();
    assert_eq!(guest.mkdir(directory, "new").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.list(directory, 4096, false).unwrap_err(), Errno::NOENT);
}

#[test]
fn more_files_than_the_guest_may_know_are_enfile_until_it_forgets_some() {
    let mut guest = guest();
    // The root, and two more.
    guest.server.inodes.most = 3;
    let file = guest.find("file").unwrap().nodeid;
    let directory = guest.find("directory").unwrap().nodeid;
    for name in ["file", "directory"] {
        guest.find(name).unwrap();
    }
    assert_eq!(guest.find("other").unwrap_err(), Errno::NFILE);
    assert_eq!(guest.find("none").unwrap_err(), Errno::NOENT);
    // What could not be passed on is not made.
    let none = [0_u8; 0];
    let mknod = MknodIn { mode: libc::S_IFREG, ..MknodIn::default() };
    let made = [
        guest.mkdir(ROOT, "new").map(drop),
        guest.create(ROOT, "new", libc::O_RDWR, 0o600).map(drop),
        guest.ask(Opcode::Mknod, ROOT, mknod, &["new"]).map(drop),
        guest.ask(Opcode::Symlink, ROOT, none, &["new", "target"]).map(drop),
    ];
    assert_eq!(made, [Err(Errno::NFILE); 4]);
    assert!(!guest.path("new").exists());
    // A listing leaves out what the files are.
    let listing = guest.list(ROOT, 4096, true).unwrap();
    let known: Vec<_> = listing.iter().filter(|(.., node)| *node != 0).collect();
    assert_eq!((listing.len(), known.len()), (5, 2));
    // It was found twice and listed once.
    guest.forget(directory, 3);
    assert_eq!(guest.find("other").unwrap().attr.size, 5);
    assert_eq!(guest.attributes(file).unwrap().size, 4);
}

#[test]
fn statfs_reports_the_hosts_file_system() {
    let guest = guest();
    let out: StatfsOut = parse(guest.call(Opcode::Statfs, ROOT, &[]).unwrap());
    assert!(out.blocks >= out.bfree && out.bsize > 0 && out.namelen >= 255);
}

mod without_descriptors {
    use super::*;

    fn guest() -> Guest {
        let files = ["file", "other", "directory/", "directory/below"];
        Guest::with_descriptors(Mode::ReadWrite, &files, Descriptors::at_most(0))
    }

    #[test]
    fn files_are_found_by_their_names() {
        let guest = guest();
        let below = guest.find("directory/below").unwrap().nodeid;
        assert_eq!(guest.descriptors.held(), 0);
        assert_eq!(guest.attributes(below).unwrap().size, 15);
        let attr = guest.set(below, Valid::SIZE, SetAttrIn { size: 3, ..SetAttrIn::default() });
        assert_eq!(attr.unwrap().size, 3);
        assert_eq!(fs::read(guest.path("directory/below")).unwrap(), b"dir");
        assert_eq!(guest.find("directory/below").unwrap().nodeid, below);
    }

    #[test]
    fn files_that_the_guest_moves_are_found_where_they_are() {
        let guest = guest();
        let below = guest.find("directory/below").unwrap().nodeid;
        let file = guest.find("file").unwrap().nodeid;
        guest.rename((ROOT, "directory"), (ROOT, "moved"), 0).unwrap();
        assert_eq!(guest.attributes(below).unwrap().size, 15);
        let moved = guest.find("moved").unwrap().nodeid;
        let exchange = libc::RENAME_EXCHANGE;
        guest.rename((moved, "below"), (ROOT, "file"), exchange).unwrap();
        assert_eq!(guest.attributes(below).unwrap().size, 15);
        assert_eq!(guest.attributes(file).unwrap().size, 4);
    }

    #[test]
    fn what_is_no_longer_there_is_stale() {
        let guest = guest();
        let file = guest.find("file").unwrap().nodeid;
        fs::rename(guest.path("other"), guest.path("file")).unwrap();
        assert_eq!(guest.attributes(file).unwrap_err(), Errno::STALE);
        assert_ne!(guest.find("file").unwrap().nodeid, file);
        fs::remove_file(guest.path("file")).unwrap();
        assert_eq!(guest.attributes(file).unwrap_err(), Errno::STALE);
        let below = guest.find("directory/below").unwrap().nodeid;
        let directory = guest.find("directory").unwrap().nodeid;
        guest.forget(directory, 3);
        assert_eq!(guest.attributes(below).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn an_open_file_is_not_removed_if_its_node_could_not_be_kept() {
        let files = ["file", "other"];
        let guest = Guest::with_descriptors(Mode::ReadWrite, &files, Descriptors::at_most(1));
        let file = guest.find("file").unwrap().nodeid;
        let fh = guest.open(file, libc::O_RDONLY).unwrap();
        assert_eq!(guest.unlink(ROOT, "file").unwrap_err(), Errno::NFILE);
        let replaced = guest.rename((ROOT, "other"), (ROOT, "file"), 0);
        assert_eq!(replaced.unwrap_err(), Errno::NFILE);
        assert_eq!(fs::read(guest.path("file")).unwrap(), b"file");
        guest.unlink(ROOT, "other").unwrap();
        guest.close(fh).unwrap();
        guest.unlink(ROOT, "file").unwrap();
        assert_eq!(guest.attributes(file).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn what_the_guest_removes_while_it_has_it_open_is_kept() {
        let names: Vec<_> = (0..8).map(|number| format!("file{number}")).collect();
        let files: Vec<_> = names.iter().map(String::as_str).collect();
        let guest = Guest::with_descriptors(Mode::ReadWrite, &files, Descriptors::at_most(10));
        let nodes: Vec<_> = files.iter().map(|name| guest.find(name).unwrap().nodeid).collect();
        assert_eq!(guest.descriptors.held(), 5);
        // The last two are known by name only.
        let open = [nodes[6], nodes[7]].map(|node| guest.open(node, libc::O_RDWR).unwrap());
        for name in &files {
            guest.unlink(ROOT, name).unwrap();
        }
        assert_eq!(guest.descriptors.held(), 5 + 2 + 2);
        let links = nodes.iter().map(|node| guest.attributes(*node).map(|attr| attr.nlink));
        let gone = Err(Errno::STALE);
        assert_eq!(
            links.collect::<Vec<_>>(),
            [Ok(0), Ok(0), Ok(0), Ok(0), Ok(0), gone, Ok(0), Ok(0)]
        );
        open.into_iter().for_each(|fh| guest.close(fh).unwrap());
        nodes.into_iter().for_each(|node| guest.forget(node, 1));
        assert_eq!(guest.descriptors.held(), 0);
        assert_eq!(guest.server.inodes.len(), 1);
    }

    #[test]
    fn a_node_below_too_many_directories_is_an_error() {
        let guest = guest();
        let mut node = ROOT;
        let mut result = Ok(());
        for _ in 0..300 {
            match guest.mkdir(node, "d") {
                Ok(entry) => node = entry.nodeid,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        assert_eq!(result, Err(Errno::NAMETOOLONG));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Mkdir(u8),
    Rename(u8, u8, u8),
    Unlink(u8),
    Rmdir(u8),
    Lookup(u8),
    Forget(u8),
    HostRemove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u8>().prop_map(Step::Create),
        any::<u8>().prop_map(Step::Mkdir),
        any::<(u8, u8, u8)>().prop_map(|(from, to, flags)| Step::Rename(from, to, flags)),
        any::<u8>().prop_map(Step::Unlink),
        any::<u8>().prop_map(Step::Rmdir),
        any::<u8>().prop_map(Step::Lookup),
        any::<u8>().prop_map(Step::Forget),
        any::<u8>().prop_map(Step::HostRemove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    /// Whatever happens, a node that the guest holds is the file that it was, or an error; and nothing
    /// is left when the guest has forgotten all.
    #[test]
    fn a_node_is_one_file_for_ever(
        steps in prop::collection::vec(step(), 1..60),
        most in 0_usize..30,
    ) {
        let guest = Guest::with_descriptors(Mode::ReadWrite, &[], Descriptors::at_most(most));
        // Node IDs, with the numbers of lookups and the inode numbers.
        let mut known: HashMap<u64, (u64, u64)> = HashMap::new();
        let names = ["a", "b", "c"];
        let name = |n: u8| names[usize::from(n) % names.len()];
        for step in steps {
            let mut parents: Vec<_> = known.keys().copied().collect();
            parents.push(ROOT);
            parents.sort_unstable();
            let parent = |n: u8| parents[usize::from(n / 3) % parents.len()];
            let mut learn = |entry: EntryOut| {
                let node = known.entry(entry.nodeid).or_insert((0, entry.attr.ino));
                node.0 += 1;
                assert_eq!(node.1, entry.attr.ino);
            };
            match step {
                Step::Create(n) => {
                    if let Ok((entry, fh)) = guest.create(parent(n), name(n), libc::O_RDWR, 0o600) {
                        learn(entry);
                        guest.close(fh).unwrap();
                    }
                }
                Step::Mkdir(n) => drop(guest.mkdir(parent(n), name(n)).map(learn)),
                Step::Lookup(n) => drop(guest.lookup(parent(n), name(n)).map(learn)),
                Step::Rename(from, to, flags) => {
                    let (from, to) = ((parent(from), name(from)), (parent(to), name(to)));
                    let _ = guest.rename(from, to, (flags % 3).into());
                }
                Step::Unlink(n) => drop(guest.unlink(parent(n), name(n))),
                Step::Rmdir(n) => {
                    let _ = guest.ask(Opcode::Rmdir, parent(n), [0_u8; 0], &[name(n)]);
                }
                Step::HostRemove(n) => drop(fs::remove_dir_all(guest.path(name(n)))),
                Step::Forget(n) => {
                    let node = parent(n);
                    if let Some((lookups, _)) = known.remove(&node) {
                        guest.forget(node, lookups);
                    }
                }
            }
            for (node, (_, ino)) in &known {
                if let Ok(attr) = guest.attributes(*node) {
                    prop_assert_eq!(attr.ino, *ino);
                }
            }
            prop_assert!(guest.descriptors.held() <= most);
        }
        for (node, (lookups, _)) in known {
            guest.forget(node, lookups);
        }
        prop_assert_eq!(guest.server.inodes.len(), 1);
        prop_assert_eq!(guest.descriptors.held(), 0);
    }
}
