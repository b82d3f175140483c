//! Options with several settings: `size=8G,requested=1G`.

/// The settings of an option, each a key and a value. A comma in a value, as a path may have one, is
/// written twice.
pub fn parse(text: &str) -> impl Iterator<Item = Result<(&str, String), String>> {
    split_at_single_commas(text).into_iter().map(|setting| {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            format!("invalid setting {setting:?}: expected key=value, and commas in values doubled")
        })?;
        Ok((key, value.replace(",,", ",")))
    })
}

fn split_at_single_commas(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(comma) = text[from..].find(',').map(|comma| from + comma) {
        if text[comma + 1..].starts_with(',') {
            from = comma + 2;
        } else {
            pieces.push(&text[start..comma]);
            (start, from) = (comma + 1, comma + 1);
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// `on` or `off`.
pub fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("invalid {key}={value}: expected on or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_value_is_written_twice() {
        let settings = |text| parse(text).collect::<Result<Vec<_>, _>>();
        let pair = |key, value: &str| (key, value.to_owned());
        assert_eq!(settings("a=1,b=2"), Ok(vec![pair("a", "1"), pair("b", "2")]));
        let expected = vec![pair("a", "x,y"), pair("b", ","), pair("c", "z,")];
        assert_eq!(settings("a=x,,y,b=,,,c=z,,"), Ok(expected));
        for wrong in ["", "a", "a=1,", "a=1,b", ",a=1"] {
            assert!(settings(wrong).unwrap_err().contains("expected key=value"), "{wrong}");
        }
    }
}
