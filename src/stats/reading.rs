//! The macro behind the plain-number twins of the atomic structs, so that a field is named once for
//! reading and adding.

/// `reading! { struct Plain of Source { field, .. } }` makes a struct of `u64` fields that is read
/// from `&Source` by each field's `load`. With `summed` in front, readings of several shards add
/// up.
macro_rules! reading {
    ($(#[$doc:meta])* struct $plain:ident of $source:ident { $($field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $plain {
            $(
                #[doc = concat!("See [`", stringify!($source), "::", stringify!($field), "`].")]
                pub $field: u64,
            )+
        }

        impl From<&$source> for $plain {
            fn from(source: &$source) -> $plain {
                $plain { $($field: source.$field.load(),)+ }
            }
        }
    };
    (summed $(#[$doc:meta])* struct $plain:ident of $source:ident { $($field:ident,)+ }) => {
        reading! { $(#[$doc])* struct $plain of $source { $($field,)+ } }

        impl std::ops::Add for $plain {
            type Output = $plain;
            fn add(self, other: $plain) -> $plain {
                $plain { $($field: self.$field.wrapping_add(other.$field),)+ }
            }
        }

        impl std::iter::Sum for $plain {
            fn sum<I: Iterator<Item = $plain>>(all: I) -> $plain {
                all.fold($plain::default(), std::ops::Add::add)
            }
        }
    };
}

pub(super) use reading;
