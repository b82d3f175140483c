//! What a module says of itself in its section `.modinfo`.

use object::{Endianness, Object, ObjectSection, read::elf::ElfFile64};

/// The modules that a module needs directly (`depends=`, which modpost writes). None if that cannot be read.
pub fn dependencies(image: &[u8]) -> Option<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(image).ok()?;
    let section = file.section_by_name(".modinfo")?;
    let mut fields = section.data().ok()?.split(|&byte| byte == 0);
    let depends = fields.find_map(|field| field.strip_prefix(b"depends="))?;
    let names = std::str::from_utf8(depends).ok()?.split(',');
    Some(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
