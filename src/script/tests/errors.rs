//! Every error that an author can cause, with its text.

use super::*;
use crate::scenario::verdict::ScriptPos;

#[test]
fn scripts_that_cannot_be_collected_say_why() {
    let bench = Bench::new();
    golden::check("collect.txt", |script| match bench.collect(script) {
        Err(told) => told,
        Ok(decls) => decls.iter().map(|d| format!("{} {:?}\n", d.name, d.options.tags)).collect(),
    });
}

#[test]
fn bodies_do_and_say_what_they_should() {
    golden::check("body.txt", |script| {
        let bench = Bench::new();
        let ran = bench.body(script);
        let mut out: Vec<String> = ran.records.iter().map(record).collect();
        out.extend(bench.asked().iter().map(|asked| format!("asked: {asked}")));
        out.push(format!("{}, {}", ran.outcome, end(&ran.end)));
        bench.plain(&out.join("\n"))
    });
}

fn record(record: &Record) -> String {
    let line = |at: &Option<ScriptPos>| at.as_ref().map_or(0, |at| at.line);
    match record {
        Record::Check(check) => told(check),
        Record::Note { text, at } => format!("note {}: {text}", line(at)),
        Record::Skip { reason, at } => format!("skip {}: {reason}", line(at)),
        Record::Print { text } => format!("print: {text}"),
        Record::Plot(plot) => format!("plot: {}", plot.text().join(" / ")),
    }
}

fn end(end: &End) -> String {
    match end {
        End::Threw(_) => "it threw".into(),
        End::Lab(error) => format!("the laboratory: {error}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
