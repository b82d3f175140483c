//! apt-get with one suite of Debian's for its only source, and with lists of its own: neither the machine's
//! lists, nor what it has installed or prefers, count or change.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::packages::at;
use crate::program::Program;
use crate::{Architecture, DebianKernel, FetchError};

/// Debian's keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt-get, set up for a kernel.
pub struct Apt {
    directory: PathBuf,
    architecture: Architecture,
    suite: &'static str,
    mirrors: Mirrors,
}

/// A package as its mirror describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Of alternatives the first.
    dependencies: Vec<String>,
}

/// Where packages come from.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mirrors {
    main: BTreeSet<String>,
    security: BTreeSet<String>,
}

impl Apt {
    /// Gets the lists of a kernel's suite, from a mirror or from those of this machine. All files are in
    /// `directory`, which must be empty.
    pub fn update(
        directory: &Path,
        kernel: &DebianKernel,
        architecture: Architecture,
        mirror: Option<&str>,
    ) -> Result<Self, FetchError> {
        if !Path::new(KEYRING).exists() {
            return Err(FetchError::NoKeyring(KEYRING));
        }
        let mirrors = match mirror {
            Some(url) => Mirrors::at(url)?,
            None => Mirrors::of_machine(directory)?,
        };
        if mirrors.main.is_empty() {
            return Err(FetchError::NoMirror { kernel: kernel.name });
        }
        let apt =
            Self { directory: directory.to_owned(), architecture, suite: kernel.suite, mirrors };
        for path in ["none", "state/lists/partial", "cache/archives/partial"] {
            let path = directory.join(path);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let sources = directory.join("sources.list");
        fs::write(&sources, apt.mirrors.sources(kernel, architecture)).map_err(at(&sources))?;
        // It fails if one mirror does, though others may be enough: that shows when packages are looked up.
        let mut update = apt.command(Program::APT_GET);
        Program::APT_GET.output(update.args(["update", "--quiet", "--quiet"]))?;
        Ok(apt)
    }

    /// The packages that a meta package stands for: the image, and from Debian 14 on those with its parts.
    pub fn image_packages(&self, meta: &str) -> Result<Vec<Package>, FetchError> {
        let meta = self.package(meta)?;
        let image = meta.needed("linux-image-").next().ok_or(FetchError::UnknownLayout {
            package: meta.name.clone(),
            missing: "dependency on a package linux-image-RELEASE",
        })?;
        let image = self.signed_or_not(image)?;
        let parts = ["linux-base-", "linux-binary-", "linux-modules-"];
        let parts = parts.into_iter().flat_map(|prefix| image.needed(prefix));
        let mut packages =
            parts.map(|part| self.signed_or_not(part)).collect::<Result<Vec<_>, _>>()?;
        packages.insert(0, image);
        Ok(packages)
    }

    /// Downloads packages to a directory.
    pub fn download(&self, packages: &[Package], directory: &Path) -> Result<(), FetchError> {
        let names = packages.iter().map(|package| &package.name);
        let mut download = self.command(Program::APT_GET);
        download.args(["download", "--quiet", "--quiet"]).args(names).current_dir(directory);
        Program::APT_GET.run(&mut download)
    }

    /// What is not signed yet has another name.
    fn signed_or_not(&self, name: &str) -> Result<Package, FetchError> {
        let unsigned = format!("{name}-unsigned");
        let unsigned_binary = name.replace("linux-binary-", "linux-binary-unsigned-");
        for other in [name, &unsigned, &unsigned_binary] {
            if let Some(package) = self.find(other)? {
                return Ok(package);
            }
        }
        self.package(name)
    }

    fn package(&self, name: &str) -> Result<Package, FetchError> {
        self.find(name)?.ok_or_else(|| FetchError::NoPackage {
            package: name.to_owned(),
            suite: self.suite,
            mirrors: self.mirrors.main.iter().cloned().collect(),
        })
    }

    /// The newest version of a package.
    fn find(&self, name: &str) -> Result<Option<Package>, FetchError> {
        let mut show = self.command(Program::APT_CACHE);
        show.args(["show", "--no-all-versions", name]).stderr(Stdio::null());
        Ok(Package::parse(&Program::APT_CACHE.output(&mut show)?))
    }

    fn command(&self, program: Program) -> Command {
        let directory = |name: &str| self.directory.join(name).into_os_string();
        let mut command = program.command();
        for (key, value) in [
            ("Dir::Etc::SourceList", directory("sources.list")),
            ("Dir::Etc::SourceParts", directory("none")),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", directory("none")),
            ("Dir::State", directory("state")),
            ("Dir::State::Status", "/dev/null".into()),
            ("Dir::Cache", directory("cache")),
            ("Dir::Cache::PkgCache", "packages.bin".into()),
            ("APT::Architecture", self.architecture.to_string().into()),
            // The user that apt becomes otherwise may not write here.
            ("APT::Sandbox::User", "root".into()),
        ] {
            set(&mut command, key, value);
        }
        command
    }
}

fn set(command: &mut Command, key: &str, value: OsString) {
    let mut setting = OsString::from(format!("{key}="));
    setting.push(value);
    command.arg("-o").arg(setting);
}

impl Package {
    /// Reads the first paragraph of what `apt-cache show` prints.
    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().take_while(|line| !line.is_empty());
        let fields: HashMap<_, _> = lines.filter_map(|line| line.split_once(": ")).collect();
        let field = |name| fields.get(name).map(|value| value.trim().to_owned());
        let first_name =
            |alternatives: &str| alternatives.split([' ', '|', ':']).next().map(str::to_owned);
        let dependencies = field("Depends").unwrap_or_default();
        Some(Self {
            name: field("Package")?,
            version: field("Version")?,
            dependencies: dependencies.split(", ").filter_map(first_name).collect(),
        })
    }

    /// The dependencies whose names begin like this, with a version following.
    fn needed(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        let is_needed = move |name: &&str| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|it: char| it.is_ascii_digit()))
        };
        self.dependencies.iter().map(String::as_str).filter(is_needed)
    }
}

impl Mirrors {
    /// One mirror, and its security updates where mirrors have them.
    fn at(url: &str) -> Result<Self, FetchError> {
        let url = url.trim_end_matches('/');
        if !url.contains("://") || url.contains(char::is_whitespace) {
            return Err(FetchError::InvalidMirror(url.to_owned()));
        }
        Ok(Self { main: [url.to_owned()].into(), security: [format!("{url}-security")].into() })
    }

    /// Those that /etc/apt names, as apt would look for their lists if it had none.
    fn of_machine(directory: &Path) -> Result<Self, FetchError> {
        let mut uris = Program::APT_GET.command();
        set(&mut uris, "Dir::State::Lists", directory.join("no-lists").into_os_string());
        uris.args(["update", "--print-uris"]);
        Ok(Self::parse(&Program::APT_GET.output(&mut uris)?))
    }

    /// Reads lines like `'http://mirror/debian/dists/bookworm/main/binary-amd64/Packages.xz' FILE 0`. Other
    /// vendors' sources are left out by their URL as far as possible: apt refuses what Debian has not signed.
    fn parse(text: &str) -> Self {
        let mut mirrors = Self::default();
        for line in text.lines() {
            let uri = line.split('\'').nth(1);
            let Some((url, list)) = uri.and_then(|uri| uri.rsplit_once("/dists/")) else {
                continue;
            };
            let is_debian = url.rsplit('/').next().is_some_and(|name| name.starts_with("debian"));
            match list.split('/').collect::<Vec<_>>()[..] {
                [suite, "main", ..] if is_debian && suite.ends_with("-security") => {
                    mirrors.security.insert(url.to_owned());
                }
                [_, "main", ..] if is_debian => {
                    mirrors.main.insert(url.to_owned());
                }
                _ => {}
            }
        }
        mirrors
    }

    /// sources.list(5) of a kernel's suite.
    fn sources(&self, kernel: &DebianKernel, architecture: Architecture) -> String {
        let of = |mirrors: &BTreeSet<String>, suite: &str| {
            let line = |url| {
                format!(
                    "deb [arch={architecture} target=Packages signed-by={KEYRING}] {url} {suite} main\n"
                )
            };
            mirrors.iter().map(line).collect::<String>()
        };
        let security = kernel.security_suite().map(|suite| of(&self.security, &suite));
        of(&self.main, kernel.suite) + &security.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_those_of_debian() {
        let uris = "\
            'http://one.example/debian/dists/bookworm/InRelease' one 0 \n\
            'http://one.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' one 0 \n\
            'http://one.example/debian/dists/bookworm/main/binary-all/Packages.xz' one 0 \n\
            'http://one.example/debian/dists/bookworm-updates/main/dep11/Components-amd64.yml.xz' one 0 \n\
            'mirror+file:/etc/apt/mirrors/debian-security.list/dists/bookworm-security/main/binary-amd64/Packages.xz' x 0\n\
            'https://download.example/linux/debian/dists/bookworm/stable/binary-amd64/Packages' x 0 \n\
            'https://packages.example/debian/12/prod/dists/bookworm/main/binary-amd64/Packages' x 0 \n\
            Reading package lists...\n";
        let expected = Mirrors {
            main: ["http://one.example/debian".to_owned()].into(),
            security: ["mirror+file:/etc/apt/mirrors/debian-security.list".to_owned()].into(),
        };
        assert_eq!(Mirrors::parse(uris), expected);
        assert_eq!(Mirrors::parse(""), Mirrors::default());
    }

    #[test]
    fn a_mirror_has_security_updates_beside_it() {
        let mirrors = Mirrors::at("http://one.example/debian/").unwrap();
        let kernel = DebianKernel::named("debian-5.10").unwrap();
        let sources = mirrors.sources(kernel, Architecture::Amd64);
        let lines: Vec<_> = sources.lines().collect();
        assert!(lines[0].ends_with("] http://one.example/debian bullseye main"), "{sources}");
        let security = "] http://one.example/debian-security bullseye-security main";
        assert!(lines[1].ends_with(security), "{sources}");
        let newest = DebianKernel::named("debian-newest").unwrap();
        assert_eq!(mirrors.sources(newest, Architecture::Amd64).lines().count(), 1);
        for url in ["", "one.example", "http://one.example/debian bookworm main"] {
            assert!(matches!(Mirrors::at(url), Err(FetchError::InvalidMirror(_))), "{url}");
        }
    }

    #[test]
    fn a_package_names_what_it_needs() {
        let text = "\
            Package: linux-image-7.2.1-amd64\nVersion: 7.2.1-1\nArchitecture: amd64\n\
            Depends: linux-base-7.2.1-amd64 (= 7.2.1-1), linux-binary-7.2.1-amd64 (>= 1), \
            linux-base (>= 4.12~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\n\
            Description: Linux\n more of it\n\nPackage: other\nVersion: 1\n";
        let package = Package::parse(text).unwrap();
        assert_eq!((&*package.name, &*package.version), ("linux-image-7.2.1-amd64", "7.2.1-1"));
        assert_eq!(package.needed("linux-base-").collect::<Vec<_>>(), ["linux-base-7.2.1-amd64"]);
        assert_eq!(package.needed("linux-binary-").count(), 1);
        assert_eq!(package.needed("linux-modules-").count(), 0);
        assert_eq!(Package::parse("N: nothing\n"), None);
    }
}
