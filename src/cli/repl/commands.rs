//! What begins with a colon: words to the REPL itself.

use crate::words::nearest;

/// A command with what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Help(&'a str),
    Type(&'a str),
    Maps,
    Vars,
    Ps,
    Dsq,
    Save(&'a str),
    Load(&'a str),
    Time(&'a str),
    Quit,
}

/// Name, argument and meaning of every command, in the order of `:help`.
pub(super) const COMMANDS: [(&str, &str, &str); 10] = [
    ("help", "[NAME]", "this list, or all about a type, function or module"),
    ("type", "EXPR", "evaluates EXPR and says of what type it is"),
    ("maps", "", "the maps of the newest snapshot"),
    ("vars", "", "the variables"),
    ("ps", "", "the tasks of the newest snapshot"),
    ("dsq", "", "the dispatch queues of the newest snapshot, with what is queued"),
    ("save", "FILE", "writes the newest snapshot to a file; open(FILE) reads it"),
    ("load", "FILE", "evaluates a script in this session"),
    ("time", "EXPR", "evaluates EXPR and says how long it took"),
    ("quit", "", "ends; the machine ends too"),
];

/// Whether an input is for the REPL itself.
pub(super) fn is_command(input: &str) -> bool {
    input.trim_start().starts_with(':')
}

/// Reads a command.
pub(super) fn parse(input: &str) -> Result<Command<'_>, String> {
    let input = input.trim().trim_start_matches(':');
    let (name, rest) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let rest = rest.trim();
    let name = name_of(name)?;
    let Some((_, argument, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("there is no command :{name}"));
    };
    match (*argument, rest) {
        ("", "") => {}
        ("", rest) => return Err(format!(":{name} takes nothing, found {rest:?}")),
        ("[NAME]", _) => {}
        (argument, "") => return Err(format!("write :{name} {argument}")),
        _ => {}
    }
    Ok(match name {
        "help" => Command::Help(rest),
        "type" => Command::Type(rest),
        "maps" => Command::Maps,
        "vars" => Command::Vars,
        "ps" => Command::Ps,
        "dsq" => Command::Dsq,
        "save" => Command::Save(unquoted(rest)),
        "load" => Command::Load(unquoted(rest)),
        "time" => Command::Time(rest),
        _ => Command::Quit,
    })
}

/// The command that a name means: its own, or a beginning that only one has.
fn name_of(asked: &str) -> Result<&'static str, String> {
    let names = || COMMANDS.iter().map(|(name, ..)| *name);
    let begun: Vec<&str> =
        names().filter(|name| !asked.is_empty() && name.starts_with(asked)).collect();
    match begun[..] {
        [only] => return Ok(only),
        [one, other, ..] => return Err(format!(":{asked} may be :{one} or :{other}")),
        [] => {}
    }
    Err(match nearest(asked, names()) {
        Some(near) => format!("there is no command :{asked}; did you mean :{near}?"),
        None => format!("there is no command :{asked}; :help lists them"),
    })
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// The list of commands.
pub(super) fn help() -> String {
    let mut out = String::from(
        "An input is a script: the last value is shown, `;` at the end keeps it back.\n\
         `vm` is the machine, `snap` the newest snapshot, `_` the last value.\n\n",
    );
    for (name, argument, meaning) in COMMANDS {
        out.push_str(&format!("  {:<14} {meaning}\n", format!(":{name} {argument}")));
    }
    out.push_str(
        "\nTab completes, Ctrl-R searches the history, Ctrl-C stops an input, Ctrl-D ends.\n\
         Try  vm.start(#{ work: \"spin\", count: 4 }); vm.hold(\"1s\"); vm.freeze(\"a\")\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_refused_with_what_is_near() {
        let cases = [
            (":help", Ok(Command::Help(""))),
            (" :h Snapshot ", Ok(Command::Help("Snapshot"))),
            (":q", Ok(Command::Quit)),
            (":type snap.map(\"a b\").len", Ok(Command::Type("snap.map(\"a b\").len"))),
            (":t 1", Err(":t may be :type or :time")),
            (":time 1 + 1", Ok(Command::Time("1 + 1"))),
            (":load \"a b.rhai\"", Ok(Command::Load("a b.rhai"))),
            (":load", Err("write :load FILE")),
            (":type", Err("write :type EXPR")),
            (":maps x", Err(":maps takes nothing, found \"x\"")),
            (":mpas", Err("there is no command :mpas; did you mean :maps?")),
            (":", Err("there is no command :; :help lists them")),
            (":xyzzy", Err("there is no command :xyzzy; :help lists them")),
            (":save", Err("write :save FILE")),
            (":save x.cryo", Ok(Command::Save("x.cryo"))),
        ];
        for (input, want) in cases {
            assert_eq!(parse(input), want.map_err(str::to_owned), "{input:?}");
        }
    }

    #[test]
    fn the_list_fits_a_terminal() {
        let help = help();
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
        for (name, ..) in COMMANDS {
            assert!(help.contains(&format!("  :{name}")), "{name}");
        }
    }
}
