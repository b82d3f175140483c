//! `/proc/iomem`: who has claimed which range of physical addresses.

use std::ops::RangeInclusive;

use super::GuestError;

const PATH: &str = "/proc/iomem";

/// The tree of claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoMem {
    /// Claims that lie in no other.
    pub roots: Vec<Resource>,
}

/// One claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The range claimed.
    pub range: RangeInclusive<u64>,
    /// Who or what claimed it.
    pub name: String,
    /// Claims inside it.
    pub children: Vec<Resource>,
}

impl IoMem {
    /// Reads the kernel's text, in which every level is indented by two spaces.
    pub fn parse(text: &str) -> Result<Self, GuestError> {
        let mut roots = Vec::new();
        for line in text.lines() {
            let unparsed = || GuestError::Unparsed { path: PATH, line: line.to_owned() };
            let (depth, resource) = parse_line(line).ok_or_else(unparsed)?;
            let mut siblings = &mut roots;
            for _ in 0..depth {
                let parent: &mut Resource = siblings.last_mut().ok_or_else(unparsed)?;
                siblings = &mut parent.children;
            }
            siblings.push(resource);
        }
        Ok(Self { roots })
    }

    /// Every claim, a parent before its children.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        let mut pending: Vec<&Resource> = self.roots.iter().rev().collect();
        std::iter::from_fn(move || {
            let resource = pending.pop()?;
            pending.extend(resource.children.iter().rev());
            Some(resource)
        })
    }

    /// The first claim of this name.
    pub fn find(&self, name: &str) -> Option<&Resource> {
        self.iter().find(|resource| resource.name == name)
    }

    /// How many bytes the claims of this name hold.
    pub fn size_of(&self, name: &str) -> u64 {
        let claims = self.iter().filter(|resource| resource.name == name);
        claims.map(|claim| claim.range.end() - claim.range.start() + 1).sum()
    }

    /// The claims that hold an address, the outermost first.
    pub fn at(&self, address: u64) -> Vec<&Resource> {
        self.iter().filter(|resource| resource.range.contains(&address)).collect()
    }
}

/// `  100000000-10fffffff : virtio0`, the depth counted in pairs of spaces.
fn parse_line(line: &str) -> Option<(usize, Resource)> {
    let claim = line.trim_start_matches(' ');
    let depth = (line.len() - claim.len()) / 2;
    let (range, name) = claim.split_once(" : ")?;
    let (start, end) = range.split_once('-')?;
    let address = |digits| u64::from_str_radix(digits, 16).ok();
    let range = address(start)?..=address(end)?;
    Some((depth, Resource { range, name: name.to_owned(), children: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00001000-0009fbff : System RAM
00100000-1fffffff : System RAM
  01000000-01e00f27 : Kernel code
100000000-13fffffff : virtio0
  100000000-107ffffff : System RAM (virtio_mem)
  108000000-10fffffff : System RAM (virtio_mem)
";

    #[test]
    fn the_tree_is_as_indented() {
        let iomem = IoMem::parse(TEXT).unwrap();
        assert_eq!(iomem.roots.len(), 3);
        let region = iomem.find("virtio0").unwrap();
        assert_eq!(region.range, 0x1_0000_0000..=0x1_3fff_ffff);
        assert_eq!(region.children.len(), 2);
        assert_eq!(iomem.iter().count(), 6);
        assert_eq!(iomem.size_of("System RAM (virtio_mem)"), 0x1000_0000);
    }

    #[test]
    fn an_address_has_all_its_claims() {
        let iomem = IoMem::parse(TEXT).unwrap();
        let names: Vec<_> =
            iomem.at(0x1_0800_0000).into_iter().map(|claim| claim.name.as_str()).collect();
        assert_eq!(names, ["virtio0", "System RAM (virtio_mem)"]);
        assert!(iomem.at(0x2_0000_0000).is_empty());
    }

    #[test]
    fn a_line_of_another_form_is_an_error() {
        for text in ["nonsense\n", "  0000-1000 : child of nothing\n", "0-z : bad\n"] {
            let error = IoMem::parse(text).unwrap_err();
            assert!(error.to_string().contains("/proc/iomem"), "{error}");
        }
    }
}
