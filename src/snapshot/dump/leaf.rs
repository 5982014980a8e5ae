//! What holds a single value, as text.

use super::unreadable;
use crate::snapshot::access::Field;
use crate::snapshot::error::SnapshotError;
use crate::snapshot::error_text::escaped_text;
use crate::snapshot::value::{EnumValue, FieldKind, Scalar, hex};

pub(super) fn leaf_text(field: &Field) -> String {
    match field.kind() {
        FieldKind::Pointer => match field.as_u64() {
            Ok(0) => "NULL".to_owned(),
            Ok(at) => match field.summary(at) {
                Some(what) => format!("{at:#x} ({what})"),
                None => format!("{at:#x}"),
            },
            Err(error) => unreadable(&error),
        },
        FieldKind::Bytes => match field.bytes() {
            Ok(bytes) => hex(&bytes, 256),
            Err(error) => unreadable(&error),
        },
        _ => match field.scalar() {
            Ok(Scalar::Str(text)) => format!("\"{}\"", escaped_text(&text)),
            Ok(Scalar::Enum(e)) => enum_text(&e),
            Ok(scalar) => scalar.to_string(),
            Err(SnapshotError::TypeMismatch { .. }) => match (field.wide(), field.bytes()) {
                (Some(digits), _) => digits,
                (None, Ok(bytes)) => hex(&bytes, 64),
                (None, Err(error)) => unreadable(&error),
            },
            Err(error) => unreadable(&error),
        },
    }
}

/// `RUNNING (2)`, `A|B (0x3)`, `A|0x40 (0x41)`, `0x3`.
fn enum_text(e: &EnumValue) -> String {
    let shown = e.to_string();
    match e.name() {
        // One name: several of them are of bits, which are told apart in hexadecimal only.
        Some(name) if !name.contains('|') && e.value() <= i128::from(u32::MAX) => {
            format!("{} ({})", escaped_text(&name), e.value())
        }
        None if e.value() < 0 => shown,
        None if shown == e.value().to_string() => format!("{:#x}", e.value()),
        _ => format!("{} ({:#x})", escaped_text(&shown), e.value()),
    }
}
