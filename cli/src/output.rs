//! Output of commands, and the text of errors. A closed standard output is an error here, and no panic as in
//! `println!`.

use std::fmt::Display;
use std::io::{self, Write};

/// The text of an error, with each cause whose text is not part of it already.
pub fn reasons(error: &anyhow::Error) -> String {
    let mut reasons = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !reasons.contains(&cause) {
            reasons = format!("{reasons}: {cause}");
        }
    }
    reasons
}

/// Prints a command's output on standard output.
pub fn answer(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_printed_once() {
        let error = anyhow::anyhow!("no such file").context("/x: no such file");
        assert_eq!(reasons(&error.context("cannot boot")), "cannot boot: /x: no such file");
        assert_eq!(reasons(&anyhow::anyhow!("refused")), "refused");
    }
}
