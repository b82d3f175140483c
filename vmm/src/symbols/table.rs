//! The functions of a kernel, sorted by address.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// The largest number of symbols; Debian's kernel has 200 000.
pub const MAX_SYMBOLS: usize = 1 << 20;
/// The most bytes of names; Debian's kernel has 5 MiB.
const MAX_NAME_BYTES: usize = 32 << 20;

/// A table has too many symbols, or too many bytes of names.
#[derive(Debug, Error)]
#[error("more than {MAX_SYMBOLS} symbols, or {MAX_NAME_BYTES} bytes of names")]
pub struct TooManySymbols;

/// A place in a function: `name+0x12`, or `name+0x12 [module]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// The function.
    pub name: &'a str,
    /// Bytes from its start.
    pub offset: u64,
    /// The module that it is in; none for the kernel itself.
    pub module: Option<&'a str>,
}

impl fmt::Display for Symbol<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)?;
        self.module.map_or(Ok(()), |module| write!(f, " [{module}]"))
    }
}

/// A table of functions, sorted.
#[derive(Debug, Default)]
pub struct Symbols {
    functions: Vec<Function>,
    /// All names of functions and modules, one after the other.
    names: String,
}

#[derive(Debug)]
struct Function {
    address: u64,
    name: Range<u32>,
    module: Option<Range<u32>>,
    is_weak: bool,
}

impl Symbols {
    /// Larger than any function: an address farther from its symbol is in no function of the table.
    const MAX_FUNCTION_BYTES: u64 = 1 << 20;

    /// The table of `symbols`: addresses, types as nm(1) has them, names, and modules. Symbols
    /// that are not code are left out.
    pub fn collect<'a>(
        symbols: impl IntoIterator<Item = (u64, char, &'a str, Option<&'a str>)>,
    ) -> Result<Self, TooManySymbols> {
        let mut table = Self::default();
        for (address, kind, name, module) in symbols {
            table.push(address, kind, name, module)?;
        }
        table.sort();
        Ok(table)
    }

    /// Adds a symbol, if it is code. The table must be [sorted](Self::sort) before it is used.
    ///
    /// A guest's names may contain any bytes. Names with others than graphic ASCII characters are left out,
    /// since they are printed to terminals.
    pub(super) fn push(
        &mut self,
        address: u64,
        kind: char,
        name: &str,
        module: Option<&str>,
    ) -> Result<(), TooManySymbols> {
        if !matches!(kind, 'T' | 't' | 'W' | 'w') {
            return Ok(());
        }
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name(name) || !module.is_none_or(is_name) {
            return Ok(());
        }
        let name = self.intern(name)?;
        let latest = self.functions.last().and_then(|function| function.module.clone());
        let module = match (module, latest) {
            (Some(module), Some(latest)) if self.text(&latest) == module => Some(latest),
            (Some(module), _) => Some(self.intern(module)?),
            (None, _) => None,
        };
        if self.functions.len() == MAX_SYMBOLS {
            return Err(TooManySymbols);
        }
        let is_weak = kind.eq_ignore_ascii_case(&'w');
        self.functions.push(Function { address, name, module, is_weak });
        Ok(())
    }

    /// Sorts functions by address. Of several names for one address the first is shown: a strong one if there
    /// is one, with the fewest leading underscores, as in the kernel
    /// (`compare_symbols` in scripts/kallsyms.c).
    pub(super) fn sort(&mut self) {
        let names = &self.names;
        self.functions.sort_by_key(|function| {
            let name = &names[text_range(&function.name)];
            let underscores = name.len() - name.trim_start_matches('_').len();
            (function.address, function.is_weak, underscores)
        });
    }

    /// The function that contains `address`.
    pub fn resolve(&self, address: u64) -> Option<Symbol<'_>> {
        let before = self.functions.partition_point(|function| function.address <= address);
        let start = self.functions[..before].last()?.address;
        let first = self.functions[..before].partition_point(|function| function.address < start);
        let function = &self.functions[first];
        let offset = address - start;
        (offset < Self::MAX_FUNCTION_BYTES).then(|| self.symbol(function, offset))
    }

    /// Address of the function of the kernel itself that is called `name`.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let is_wanted = |symbol: Symbol<'_>| (symbol.module, symbol.name) == (None, name);
        self.iter().find_map(|(address, symbol)| is_wanted(symbol).then_some(address))
    }

    /// The starts of all functions, sorted by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, Symbol<'_>)> {
        self.functions.iter().map(|function| (function.address, self.symbol(function, 0)))
    }

    fn symbol(&self, function: &Function, offset: u64) -> Symbol<'_> {
        let module = function.module.as_ref().map(|module| self.text(module));
        Symbol { name: self.text(&function.name), offset, module }
    }

    fn text(&self, range: &Range<u32>) -> &str {
        &self.names[text_range(range)]
    }

    fn intern(&mut self, name: &str) -> Result<Range<u32>, TooManySymbols> {
        if self.names.len() + name.len() > MAX_NAME_BYTES {
            return Err(TooManySymbols);
        }
        let start = self.names.len() as u32;
        self.names.push_str(name);
        Ok(start..self.names.len() as u32)
    }
}

fn text_range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_nearest_function_that_starts_before_it() {
        let symbols = Symbols::collect([
            (0x300, 't', "last", Some("other")),
            (0x100, 'W', "weak", None),
            (0x100, 'T', "__first", None),
            (0x100, 't', "first", None),
            (0x180, 'D', "data", None),
            (0x200, 't', "second", Some("module")),
        ])
        .unwrap();
        let shown = |address| symbols.resolve(address).map(|symbol| symbol.to_string());
        assert_eq!(shown(0xff), None);
        assert_eq!(shown(0x100).unwrap(), "first+0x0");
        assert_eq!(shown(0x1ff).unwrap(), "first+0xff");
        assert_eq!(shown(0x200).unwrap(), "second+0x0 [module]");
        assert_eq!(shown(0x30f).unwrap(), "last+0xf [other]");
        assert_eq!(shown(0x300 + (1 << 20)), None);
        assert_eq!(symbols.address_of("weak"), Some(0x100));
        assert_eq!(symbols.address_of("last"), None);
        assert_eq!(symbols.iter().len(), 5);
    }

    #[test]
    fn the_size_of_a_table_is_limited() {
        let name = "a".repeat(1 << 10);
        let many = (0..).map(|address| (address, 't', name.as_str(), None));
        assert!(Symbols::collect(many.clone().take(1 << 15)).is_ok());
        assert!(Symbols::collect(many).is_err());
        assert!(Symbols::collect((0..).map(|address| (address, 't', "a", None))).is_err());
    }
}
