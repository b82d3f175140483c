//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use testvm::kernel::KernelError;
use thiserror::Error;

use crate::debian::names;

/// Why a kernel of Debian's cannot be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// Nothing says where the cache is.
    #[error(
        "there is no place for kernels: set HOME, or XDG_CACHE_HOME to an absolute path; they go into moat/kernels below it"
    )]
    NoCache,
    /// The cache, or something in it.
    #[error(
        "cannot write {path}: {source}; XDG_CACHE_HOME can name another directory for kernels to be in"
    )]
    Cache {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that is needed.
    #[error("there is no program {program}; it is in Debian's package {package}")]
    NoProgram {
        /// Which.
        program: &'static str,
        /// Where to get it.
        package: &'static str,
    },
    /// A program that cannot be started.
    #[error("cannot start {program}: {source}")]
    NotStarted {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program that did not do its work.
    #[error("{program} failed ({status}); its message is above")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// The keys by which packages are verified.
    #[error(
        "there is no {0}, by which packages are verified; it is in Debian's package debian-archive-keyring"
    )]
    NoKeyring(&'static str),
    /// A mirror that apt would not understand.
    #[error("--mirror {0}: expected a URL without blanks, as https://deb.debian.org/debian")]
    InvalidMirror(String),
    /// Where to look for packages is not known.
    #[error(
        "/etc/apt names no mirror of Debian's (a source with the component main, at a URL that ends in debian); name one with --mirror, as `moat kernel fetch {kernel} --mirror https://deb.debian.org/debian`"
    )]
    NoMirror {
        /// What was to be fetched.
        kernel: &'static str,
    },
    /// The mirrors do not have it, or cannot be reached.
    #[error(
        "apt-get got no package {package} of Debian's suite {suite} from {}; if it printed why, that is above. It needs a network and a mirror that has the suite: `moat kernel fetch NAME --mirror URL` takes another mirror", .mirrors.join(" and ")
    )]
    NoPackage {
        /// Which package.
        package: String,
        /// The suite it should be in.
        suite: &'static str,
        /// Where it was looked for.
        mirrors: Vec<String>,
    },
    /// Packages with something else in them.
    #[error("{package} is not laid out as moat knows kernel packages: it has no {missing}")]
    UnknownLayout {
        /// The package.
        package: String,
        /// What was not found.
        missing: &'static str,
    },
}

/// Why no kernel is found.
#[derive(Debug, Error)]
pub enum FindError {
    /// It is neither a file nor a name.
    #[error(
        "cannot read {name}: No such file or directory, and no kernel of that name either; the names are {}",
        names()
    )]
    UnknownName {
        /// What was asked for.
        name: String,
    },
    /// This host's kernel is not where distributions have it.
    #[error(
        "this host runs Linux {release}, but has neither {} of it; name a kernel with --kernel: a path, or one of {}", .images.iter().map(|image| image.display().to_string()).collect::<Vec<_>>().join(" nor "), names()
    )]
    NoHostKernel {
        /// What runs.
        release: String,
        /// Where it was looked for.
        images: Vec<PathBuf>,
    },
    /// This host's kernel cannot be used.
    #[error(
        "cannot run this host's own kernel, Linux {release}; name another with --kernel: a path, or one of {}",
        names()
    )]
    HostKernel {
        /// What runs.
        release: String,
        /// Why.
        source: KernelError,
    },
    /// The kernel that was asked for.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}
