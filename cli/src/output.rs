//! Answers, and why there are none. Nothing panics when nobody listens any more, as `println!` would.

use std::fmt::Display;
use std::io::{self, Write};

/// Why something cannot be done, with each cause that the words before it do not tell already.
pub fn reasons(error: &anyhow::Error) -> String {
    let mut reasons = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !reasons.contains(&cause) {
            reasons = format!("{reasons}: {cause}");
        }
    }
    reasons
}

/// Prints an answer on standard output.
pub fn answer(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("/x: no such file");
        assert_eq!(reasons(&error.context("cannot boot")), "cannot boot: /x: no such file");
        assert_eq!(reasons(&anyhow::anyhow!("refused")), "refused");
    }
}
