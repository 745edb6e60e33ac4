//! A client's names on their way to another shard, each with the statement's text: statements are
//! shared by the clients of one shard only.

use super::budget::Charge;
use super::on_server::{RowTypes, StatementId};
use super::prepared::{ClientStatements, Form, Found, Names, Registered, Statement, Statements};
use super::told::Telling;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A client's names off any shard. Every text is there once, those that others need ahead of them.
#[derive(Debug, Default)]
pub struct PackedStatements {
    texts: Vec<PackedStatement>,
    names: Vec<PackedName>,
    serial: u64,
}

#[derive(Debug)]
struct PackedName {
    name: Box<[u8]>,
    serial: u64,
    is_confirmed: bool,
    found: Option<Found>,
    told: Option<RowTypes>,
    /// Which of the texts.
    statement: usize,
    charge: Charge,
}

#[derive(Debug)]
struct PackedStatement {
    body: Box<[u8]>,
    form: PackedForm,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
enum PackedForm {
    Parse,
    /// Of which of the texts.
    ParseOf(usize),
    Sql,
}

/// Texts being packed, and the places of those that are.
#[derive(Default)]
struct Packing {
    texts: Vec<PackedStatement>,
    places: HashMap<StatementId, usize>,
}

impl Packing {
    fn place_of(&mut self, statement: &Statement) -> usize {
        if let Some(place) = self.places.get(&statement.id()) {
            return *place;
        }
        let form = match statement.form() {
            Form::Parse => PackedForm::Parse,
            Form::ParseOf(other) => PackedForm::ParseOf(self.place_of(other)),
            Form::Sql => PackedForm::Sql,
        };
        let place = self.texts.len();
        self.places.insert(statement.id(), place);
        self.texts.push(PackedStatement {
            body: statement.body().into(),
            form,
            generation: statement.generation(),
        });
        place
    }
}

impl ClientStatements {
    /// Takes the names off this shard.
    pub fn pack(self) -> PackedStatements {
        let mut packing = Packing::default();
        let Names { names, serial, .. } = self.0.map(|it| *it).unwrap_or_default();
        let names = names.into_iter().map(|(name, registered)| PackedName {
            name,
            serial: registered.serial,
            is_confirmed: registered.is_confirmed,
            found: registered.found.and_then(|it| it.get().cloned()),
            told: registered.told.and_then(|it| it.types()),
            statement: packing.place_of(&registered.statement),
            charge: registered.charge,
        });
        PackedStatements {
            names: names.collect(),
            texts: packing.texts,
            serial,
        }
    }
}

impl PackedStatements {
    /// Puts the names on the shard whose statements these are.
    pub fn unpack(self, statements: &mut Statements) -> ClientStatements {
        let mut here: Vec<Rc<Statement>> = Vec::with_capacity(self.texts.len());
        for packed in self.texts {
            let form = match packed.form {
                PackedForm::Parse => Form::Parse,
                PackedForm::ParseOf(place) => Form::ParseOf(here[place].clone()),
                PackedForm::Sql => Form::Sql,
            };
            here.push(statements.take_over(&packed.body, form, packed.generation));
        }
        let names = self.names.into_iter().map(|packed| {
            let registered = Registered {
                serial: packed.serial,
                statement: here[packed.statement].clone(),
                found: packed.found.map(|it| Rc::new(OnceCell::from(it))),
                told: packed.told.map(|it| Rc::new(Telling::of(it))),
                is_confirmed: packed.is_confirmed,
                batch: 0,
                charge: packed.charge,
            };
            (packed.name, registered)
        });
        let names: HashMap<_, _> = names.collect();
        let serial = self.serial;
        let names = || Names {
            names,
            serial,
            ..Names::default()
        };
        ClientStatements((serial > 0).then(|| Box::new(names())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Budget;
    use std::sync::Arc;

    /// Two shards of one process.
    fn shards(bytes_max: u64) -> (Arc<Budget>, Statements, Statements) {
        let budget = Arc::new(Budget::new(bytes_max));
        let [here, there] = [(); 2].map(|()| Statements::new(budget.clone()));
        (budget, here, there)
    }

    #[test]
    fn names_that_move_stand_for_the_same_statements() {
        let (_, mut here, mut there) = shards(1 << 20);
        let mut client = ClientStatements::default();
        let plain = here.intern(b"select 1\0\0\0", Form::Parse, 3).unwrap();
        let spoken = here.intern(b" as select 2", Form::Sql, 0).unwrap();
        let form = Form::ParseOf(spoken.clone());
        let of = here.intern(b"execute s\0\0\0", form, 0).unwrap();
        for (name, statement) in [("p", &plain), ("s", &spoken), ("o", &of)] {
            client.register(name.as_bytes(), statement.clone()).unwrap();
        }
        client.register(b"again", plain.clone()).unwrap();
        let packed = client.pack();
        assert_eq!(packed.texts.len(), 3, "every text once");
        let moved = packed.unpack(&mut there);
        assert_eq!(moved.len(), 4);
        for (name, statement) in [("p", &plain), ("s", &spoken), ("o", &of)] {
            let there = moved.get(name.as_bytes()).unwrap();
            assert_eq!(there.id(), statement.id());
            assert_eq!(there.generation(), statement.generation());
            assert!(!Rc::ptr_eq(there, statement), "shared between threads");
        }
        let Form::ParseOf(other) = moved.get(b"o").unwrap().form() else {
            panic!("another form");
        };
        assert!(Rc::ptr_eq(other, moved.get(b"s").unwrap()));
        let again = there.intern(b"select 1\0\0\0", Form::Parse, 3).unwrap();
        assert!(Rc::ptr_eq(&again, moved.get(b"p").unwrap()));
    }

    #[test]
    fn types_found_for_a_name_move_with_it() {
        let (_, mut here, mut there) = shards(1 << 20);
        let mut client = ClientStatements::default();
        let statement = here.intern(b"select $1\0\0\0", Form::Parse, 3).unwrap();
        let types = Arc::from(&b"\0\x01\0\0\0\x17"[..]);
        let found = Found {
            generation: 3,
            types,
        };
        let finding = Rc::new(OnceCell::from(found));
        client
            .register_open(b"s", statement, Some(finding))
            .unwrap();
        let moved = client.pack().unpack(&mut there).found(b"s").unwrap();
        assert_eq!(
            (moved.generation, &*moved.types),
            (3, &b"\0\x01\0\0\0\x17"[..])
        );
    }

    #[test]
    fn names_arrive_although_the_budget_is_used_up_and_give_back_what_they_took() {
        let (budget, mut here, mut there) = shards(1000);
        let mut client = ClientStatements::default();
        let statement = here.intern(b"select 1\0\0\0", Form::Parse, 0).unwrap();
        client.register(b"s", statement).unwrap();
        budget.set_max(1);
        let used = budget.used();
        let moved = client.pack().unpack(&mut there);
        assert_eq!((moved.len(), budget.used()), (1, used));
        drop(moved);
        assert_eq!(budget.used(), 0);
    }
}
