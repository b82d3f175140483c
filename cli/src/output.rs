//! Words for people and answers for machines. Neither panics when nobody listens any more, as
//! `println!` and `eprintln!` would.

use std::fmt::Display;
use std::io::{self, Write};

/// Says something on standard error. If nobody listens, nobody needs to know.
pub fn tell(message: impl Display) {
    let _ = writeln!(io::stderr(), "moat: {message}");
}

/// Prints an answer on standard output.
pub fn answer(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}
