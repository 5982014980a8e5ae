//! The reference as a page of the book, `docs/api.md`.

use crate::script::ModuleDoc;
use crate::script::surface::{FunctionDoc, Surface};

use super::{indented, is_offered, members, owners};

/// The page.
pub(super) fn markdown(surface: &Surface, modules: &[ModuleDoc]) -> String {
    let mut out = String::from(
        "# Script reference\n\nEverything that a script can name. `cryoscope api --markdown` prints this page, `cryoscope api \
         NAME` one\nname of it, and `cryoscope api --definitions DIR` writes files for editors.\n\nA `duration` is a string like \
         `\"250ms\"`, `\"2s\"` or `\"1m30s\"`; where a scenario's duration is known, also `\"50%\"`.\nProperties are written \
         without parentheses: `snap.tag`.\n\n## Functions\n\n",
    );
    surface.of_type(None).filter(|f| is_offered(f)).for_each(|f| out.push_str(&item(f)));
    out.push_str("\n# Types\n");
    for name in owners(surface) {
        out.push_str(&of_type(surface, name));
    }
    out.push_str("\n# Modules\n");
    for module in modules {
        out.push_str(&format!("\n## {}\n\n{}\n\n", module.name, module.doc.trim()));
        let short = module.name.rsplit('/').next().unwrap_or_default();
        out.push_str(&format!("```rhai\nimport \"{}\" as {short};\n```\n\n", module.name));
        module.functions.iter().for_each(|function| out.push_str(&item(function)));
    }
    out
}

fn of_type(surface: &Surface, name: &str) -> String {
    let mut out = format!("\n## {name}\n\n");
    if let Some(ty) = surface.types.iter().find(|t| t.name == name) {
        out.push_str(&format!("{}\n\n", ty.doc.trim()));
    }
    let (members, signs) = members(surface, name);
    members.into_iter().for_each(|function| out.push_str(&item(function)));
    if !signs.is_empty() {
        out.push_str(&format!("- operators `{}`\n", signs.join("` `")));
    }
    out
}

/// A signature with all that is said of it, as an item of a list.
fn item(function: &FunctionDoc) -> String {
    format!("- `{}`\n{}", function.signature(), indented(function.doc.trim(), "  "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::reference;
    use crate::script::tests::golden;

    #[test]
    fn the_page_of_the_book_is_what_is_printed() {
        let page = markdown(&reference().surface(false), &reference().modules());
        golden::page("docs/api.md", &page, "cli::api");
    }

    #[test]
    fn examples_stay_inside_of_their_items() {
        let page = markdown(&reference().surface(false), &reference().modules());
        for part in [
            "\n## Vm\n\nA live machine",
            "\n- `freeze(tag: string) -> Snapshot`\n  Stops all vCPUs",
            "\n## std/checks\n",
            "\n  ```\n  let before = t.freeze(\"before\");\n",
        ] {
            assert!(page.contains(part), "{part:?} is missing");
        }
    }
}
