//! A checked value before it has its Rust type, and how it takes that type.

use crate::base::Secret;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A value that its key's kind has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The key has no value.
    Unset,
    /// `true` or `false`.
    Bool(bool),
    /// A count, a size in bytes, or file mode bits.
    Int(u64),
    /// A span of time.
    Duration(Duration),
    /// A string, word, name or path.
    Text(String),
    /// A list of strings.
    List(Vec<String>),
    /// A list of numbers.
    Numbers(Vec<u64>),
    /// A password; never printed.
    Secret(Secret),
}

/// A type that a setting can have in the model.
///
/// `from_value` gives `None` where the kind of a key lets through what its type cannot hold: an
/// error in the table of keys, which a test over every key rules out.
pub(super) trait Field: Sized {
    fn from_value(value: Value) -> Option<Self>;
    fn to_value(&self) -> Value;
}

macro_rules! field {
    ($($type:ty: $variant:ident;)+) => { $(
        impl Field for $type {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(inner) => inner.try_into().ok(),
                    _ => None,
                }
            }

            fn to_value(&self) -> Value {
                Value::$variant(self.clone().into())
            }
        }
    )+ };
}

field! {
    bool: Bool;
    u16: Int;
    u32: Int;
    Duration: Duration;
    String: Text;
    Vec<String>: List;
    Secret: Secret;
}

impl Field for usize {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Int(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        Value::Int(u64::try_from(*self).unwrap_or(u64::MAX))
    }
}

impl Field for Vec<usize> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Numbers(numbers) => numbers.into_iter().map(|n| n.try_into().ok()).collect(),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        let wide = |number: &usize| u64::try_from(*number).unwrap_or(u64::MAX);
        Value::Numbers(self.iter().map(wide).collect())
    }
}

impl Field for PathBuf {
    fn from_value(value: Value) -> Option<Self> {
        String::from_value(value).map(PathBuf::from)
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string_lossy().into_owned())
    }
}

impl Field for SocketAddr {
    fn from_value(value: Value) -> Option<Self> {
        String::from_value(value)?.parse().ok()
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }
}

impl<T: Field> Field for Option<T> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Unset => Some(None),
            value => T::from_value(value).map(Some),
        }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Unset, T::to_value)
    }
}
