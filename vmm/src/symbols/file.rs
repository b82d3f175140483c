//! Symbols from a file: a System.map, a copy of /proc/kallsyms, or a vmlinux.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Once;

use log::warn;
use object::elf::{FileHeader64, SHF_EXECINSTR, SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB};
use object::read::StringTable;
use object::read::elf::{ElfFile64, FileHeader, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, ReadCache, ReadRef, SectionFlags};
use thiserror::Error;

use super::kallsyms::ENTRY;
use super::table::{Symbol, Symbols, TooManySymbols};
use crate::files;

/// Why no symbols can be read from a file.
#[derive(Debug, Error)]
#[error("cannot read symbols from {}: {reason}", path.display())]
pub struct SymbolFileError {
    path: PathBuf,
    reason: Reason,
}

/// The reason, without the path.
#[derive(Debug, Error)]
enum Reason {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(
        "it is neither a vmlinux nor a System.map nor a copy of /proc/kallsyms ({0:?} is not a symbol)"
    )]
    Foreign(String),
    #[error("it is not an x86-64 vmlinux: {0}")]
    Elf(#[from] object::Error),
    #[error("it has none; give a vmlinux that is not stripped, or the System.map beside it")]
    Empty,
    #[error(
        "all addresses are zero; copy /proc/kallsyms as root, with kernel.kptr_restrict=1 or 0"
    )]
    AddressesHidden,
    #[error("it has {0} bytes of symbols or names, more than any kernel has")]
    TooLarge(u64),
    #[error("it has no {ENTRY}, which every Linux kernel for x86-64 has")]
    NoEntry,
    #[error(transparent)]
    TooMany(#[from] TooManySymbols),
}

/// The symbols of a kernel from a System.map, a copy of /proc/kallsyms, or a vmlinux. KASLR may have moved
/// the running kernel.
#[derive(Debug)]
pub struct SymbolFile {
    path: PathBuf,
    symbols: Symbols,
    /// The address of [`ENTRY`] in the file.
    entry: u64,
    warning: Once,
}

impl Symbols {
    /// Reads the file at `path`, in any of the three formats.
    pub fn from_file(path: &Path) -> Result<Self, SymbolFileError> {
        read(path).map_err(|reason| SymbolFileError { path: path.into(), reason })
    }
}

impl SymbolFile {
    /// KASLR moves a kernel by a multiple of this, the smallest CONFIG_PHYSICAL_ALIGN of x86-64.
    const SLIDE_ALIGNMENT: u64 = 2 << 20;

    /// Reads the file at `path`, which must be that of a kernel.
    pub fn open(path: &Path) -> Result<Self, SymbolFileError> {
        let symbols = Symbols::from_file(path)?;
        let no_entry = || SymbolFileError { path: path.into(), reason: Reason::NoEntry };
        let entry = symbols.address_of(ENTRY).ok_or_else(no_entry)?;
        Ok(Self { path: path.into(), symbols, entry, warning: Once::new() })
    }

    /// The symbol at `address` of a kernel whose [`ENTRY`] is at `entry`.
    ///
    /// None for modules if the kernel has moved: their addresses change with each boot.
    pub fn resolve(&self, entry: u64, address: u64) -> Option<Symbol<'_>> {
        let slide = entry.wrapping_sub(self.entry);
        if !slide.is_multiple_of(Self::SLIDE_ALIGNMENT) {
            self.warning.call_once(|| {
                warn!("{} is not from the guest's kernel, and is not used", self.path.display());
            });
            return None;
        }
        let symbol = self.symbols.resolve(address.wrapping_sub(slide))?;
        (slide == 0 || symbol.module.is_none()).then_some(symbol)
    }
}

fn read(path: &Path) -> Result<Symbols, Reason> {
    const ELF_MAGIC: &[u8] = b"\x7fELF";
    let mut file = files::open_regular(path)?;
    let mut start = Vec::new();
    (&file).take(ELF_MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    if start == ELF_MAGIC { read_elf(file) } else { read_text(BufReader::new(file)) }
}

/// Reads lines such as `ffffffff81000000 T _text`, with `[module]` at the end of some. They are read one
/// by one, since the file may be larger than memory.
fn read_text(mut lines: impl BufRead) -> Result<Symbols, Reason> {
    /// Names have at most 511 characters (KSYM_NAME_LEN of Linux 6.1).
    const LONGEST_LINE: u64 = 1024;
    const SHOWN: usize = 40;
    let mut symbols = Symbols::default();
    let (mut some, mut some_address) = (false, false);
    let mut line = Vec::new();
    while {
        line.clear();
        (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0
    } {
        let text = str::from_utf8(&line).ok();
        let (address, kind, name, module) = text.and_then(parse_line).ok_or_else(|| {
            let text = String::from_utf8_lossy(&line);
            Reason::Foreign(text.trim_end().chars().take(SHOWN).collect())
        })?;
        some = true;
        some_address |= address != 0;
        symbols.push(address, kind, name, module)?;
    }
    match (some, some_address) {
        (false, _) => return Err(Reason::Empty),
        (true, false) => return Err(Reason::AddressesHidden),
        (true, true) => symbols.sort(),
    }
    Ok(symbols)
}

fn parse_line(line: &str) -> Option<(u64, char, &str, Option<&str>)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?.parse().ok()?;
    let name = words.next()?;
    let module = match words.next() {
        Some(word) => Some(word.strip_prefix('[')?.strip_suffix(']')?),
        None => None,
    };
    Some((address, kind, name, module))
}

/// Reads the code symbols of an ELF file. Only its symbol table is read: it may have a gigabyte of debugging
/// information.
fn read_elf(file: File) -> Result<Symbols, Reason> {
    let cache = ReadCache::new(file);
    check_table_sizes(&cache)?;
    let elf = ElfFile64::<Endianness, _>::parse(&cache)?;
    let table = elf.elf_symbol_table();
    if table.is_empty() {
        return Err(Reason::Empty);
    }
    // All names at once: reading each alone would be a system call.
    let names = elf.section_by_index(table.string_section())?.data()?;
    let names = StringTable::new(names, 0, names.len() as u64);
    let is_code = |flags| matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(SHF_EXECINSTR));
    let code = elf.sections().filter(|section| is_code(section.flags()));
    let code: Vec<_> = code.map(|section| section.index()).collect();
    let symbols = elf.symbols().filter_map(|symbol| {
        let section = symbol.section_index()?;
        let name = names.get(symbol.elf_symbol().st_name(elf.endian())).ok()?;
        let name = str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        let kind = if symbol.is_weak() { 'W' } else { 'T' };
        code.contains(&section).then_some((symbol.address(), kind, name, None))
    });
    Ok(Symbols::collect(symbols)?)
}

/// Checks the sizes in the headers, which may be wrong: the symbols and their names are each read at once.
fn check_table_sizes<'a>(file: impl ReadRef<'a>) -> Result<(), Reason> {
    /// A kernel with all drivers built in has 30 MiB of each.
    const LARGEST_TABLE: u64 = 256 << 20;
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    // Zero means 0xff00 sections or more, which no kernel has, or none.
    if header.e_shnum(endian) == 0 {
        return Err(Reason::Empty);
    }
    for section in header.section_headers(endian, file)? {
        let size = section.sh_size(endian);
        let is_read = matches!(section.sh_type(endian), SHT_SYMTAB | SHT_STRTAB | SHT_DYNSYM);
        if is_read && size > LARGEST_TABLE {
            return Err(Reason::TooLarge(size));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use object::write::elf::Writer;
    use object::{elf, write};
    use tempfile::TempDir;

    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t some_function
ffffffff81e00040 T entry_SYSCALL_64
ffffffff82000000 D some_data
ffffffffa0000000 t in_module\t[module]
";

    fn open(contents: impl AsRef<[u8]>) -> Result<SymbolFile, SymbolFileError> {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("symbols");
        fs::write(&path, contents).unwrap();
        SymbolFile::open(&path)
    }

    #[test]
    fn symbols_of_a_moved_kernel_resolve_except_those_of_modules() {
        let file = open(KALLSYMS).unwrap();
        let shown = |slide: u64, address: u64| {
            let symbol = file.resolve(0xffff_ffff_81e0_0040 + slide, address + slide);
            symbol.map(|symbol| symbol.to_string())
        };
        let some_function = 0xffff_ffff_8100_0112;
        assert_eq!(shown(0, some_function).unwrap(), "some_function+0x12");
        assert_eq!(shown(0x1400_0000, some_function).unwrap(), "some_function+0x12");
        assert_eq!(shown(0x1400_0001, some_function), None, "another kernel");
        assert_eq!(shown(0, 0xffff_ffff_a000_0001).unwrap(), "in_module+0x1 [module]");
        assert_eq!(shown(0x1400_0000, 0xffff_ffff_a000_0001), None);
    }

    #[test]
    fn the_error_for_a_file_without_symbols_says_why() {
        let hidden: String =
            KALLSYMS.lines().map(|line| format!("{:016x}{}\n", 0, &line[16..])).collect();
        let without_entry = KALLSYMS.replace("entry_SYSCALL_64", "system_call");
        for (contents, reason) in [
            (&b""[..], "it has none"),
            (hidden.as_bytes(), "kernel.kptr_restrict"),
            (without_entry.as_bytes(), "no entry_SYSCALL_64"),
            (b"\x1f\x8b\x08", "neither"),
            (b"ffffffff81000000 T", "\"ffffffff81000000 T\" is not a symbol"),
            (b"\x7fELF", "not an x86-64 vmlinux"),
        ] {
            let message = open(contents).unwrap_err().to_string();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
        let message = SymbolFile::open(Path::new("/none")).unwrap_err().to_string();
        assert_eq!(
            message,
            "cannot read symbols from /none: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn names_with_control_characters_are_left_out() {
        let file = open(format!("{KALLSYMS}ffffffff81000200 t \x1b[2Jgone\n")).unwrap();
        let entry = 0xffff_ffff_81e0_0040;
        let symbol = file.resolve(entry, 0xffff_ffff_8100_0210).unwrap();
        assert_eq!(symbol.to_string(), "some_function+0x110");
    }

    #[test]
    fn lines_and_tables_that_are_too_large_are_not_read() {
        let message = SymbolFile::open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(message.contains("character device"), "{message}");
        let line = vec![b'x'; 1 << 20];
        assert!(open(line).unwrap_err().to_string().contains("xxx"));
        // A section header table of one symbol table, in a sparse file.
        let mut writer_bytes = Vec::new();
        let mut writer = Writer::new(Endianness::Little, true, &mut writer_bytes);
        writer.reserve_file_header();
        writer.reserve_symtab_section_index();
        writer.reserve_shstrtab_section_index();
        writer.reserve_shstrtab().unwrap();
        writer.reserve_section_headers();
        let header = write::elf::FileHeader {
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            e_type: elf::ET_EXEC,
            e_machine: elf::EM_X86_64,
            e_entry: 0,
            e_flags: elf::FileFlags(0),
        };
        writer.write_file_header(&header).unwrap();
        writer.write_shstrtab();
        writer.write_null_section_header();
        writer.write_section_header(&write::elf::SectionHeader {
            sh_name: 0,
            sh_type: SHT_SYMTAB,
            sh_flags: elf::SectionFlags(0),
            sh_addr: 0,
            sh_offset: 0,
            sh_size: 1 << 40,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: 8,
            sh_entsize: 24,
        });
        writer.write_shstrtab_section_header();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("sparse");
        fs::write(&path, writer_bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 41).unwrap();
        let message = SymbolFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("1099511627776 bytes of symbols"), "{message}");
    }

    #[test]
    fn an_elf_file_has_functions_and_no_data() {
        let symbols = Symbols::from_file(&std::env::current_exe().unwrap()).unwrap();
        assert!(symbols.address_of("main").is_some());
        assert!(symbols.address_of("environ").is_none(), "data");
    }
}
