//! Drives clients over one window.

use super::client::{Client, Dialer, Step};
use super::now_nanos;
use super::options::Drive;
use super::report::Report;
use crate::poller::Poller;
use crate::wire::{Protocol, preparation, request};
use slab::Slab;
use std::collections::VecDeque;
use std::io;

/// How long after the window answers are waited for.
const PATIENCE_NANOS: u64 = 5_000_000_000;

/// One drive of one worker.
pub struct Driving<'a> {
    clients: &'a mut Slab<Client>,
    dialer: &'a Dialer,
    drive: Drive,
    window: (u64, u64),
    request: Vec<u8>,
    preparation: Vec<u8>,
    /// Clients that may ask, longest idle first.
    free: VecDeque<usize>,
    /// When transactions were due that found no free client.
    backlog: VecDeque<u64>,
    next_due: u64,
    random: Random,
    report: Report,
    asked: usize,
}

impl<'a> Driving<'a> {
    /// Takes the first `drive.clients` that are ready.
    pub fn new(
        clients: &'a mut Slab<Client>,
        dialer: &'a Dialer,
        query: &str,
        drive: Drive,
        seed: u64,
    ) -> Self {
        let ready = clients.iter().filter(|(_, client)| client.is_ready());
        let free = ready.map(|(key, _)| key).take(drive.clients).collect();
        Driving {
            clients,
            dialer,
            drive,
            window: drive.window(),
            request: request(drive.protocol, query),
            preparation: preparation(query),
            free,
            backlog: VecDeque::new(),
            next_due: drive.start_nanos,
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            report: Report::default(),
            asked: 0,
        }
    }

    /// Runs until the window has closed and every answer has come, or the patience is over.
    ///
    /// # Errors
    /// What the kernel says to epoll.
    pub fn run(mut self, poller: &mut Poller, scratch: &mut [u8]) -> io::Result<Report> {
        let give_up = self.window.1 + PATIENCE_NANOS;
        loop {
            let now = now_nanos();
            if now < self.window.1 {
                self.send_due(now);
            } else if (self.asked == 0 && self.backlog.is_empty()) || now >= give_up {
                break;
            }
            let until = if now < self.window.1 {
                self.next_due.min(self.window.1)
            } else {
                give_up
            };
            for key in poller.wait(Some(until.saturating_sub(now)))? {
                self.step(key, scratch);
            }
        }
        self.count_unanswered();
        Ok(self.report)
    }

    fn send_due(&mut self, now: u64) {
        if self.drive.rate == 0.0 {
            if now >= self.drive.start_nanos {
                self.next_due = u64::MAX;
                while let Some(key) = self.free.pop_front() {
                    self.ask(key, now);
                }
            }
            return;
        }
        while self.next_due <= now {
            let due = self.next_due;
            self.next_due += self.random.exponential(1e9 / self.drive.rate);
            match self.free.pop_front() {
                Some(key) => self.ask(key, due),
                None => self.backlog.push_back(due),
            }
        }
    }

    fn ask(&mut self, key: usize, due: u64) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.asked = (due, now_nanos());
        self.asked += 1;
        let mut result = Ok(());
        if self.drive.protocol == Protocol::Prepared && !client.has_prepared {
            (client.has_prepared, client.preliminary) = (true, 1);
            result = client.ask(&self.preparation);
        }
        if let Err(error) = result.and_then(|()| client.ask(&self.request)) {
            self.lose(key, &error.to_string());
        }
    }

    fn step(&mut self, key: usize, scratch: &mut [u8]) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let asked = client.asked;
        match client.step(self.dialer, scratch) {
            Step::Nothing | Step::LoggedIn => {}
            Step::Gone(why) => self.lose(key, &why),
            Step::Answered(failure) => {
                self.asked -= 1;
                self.answered(asked, failure);
                self.go_on(key);
            }
        }
    }

    fn answered(&mut self, (due, sent): (u64, u64), failure: Option<String>) {
        let now = now_nanos();
        // Closed loop: what ends in the window; open loop: what was due in it, however late it ends.
        let counted = if self.drive.rate == 0.0 { now } else { due };
        match failure {
            Some(why) => self.report.fail(&why),
            None if (self.window.0..self.window.1).contains(&counted) => {
                self.report.record(due, sent, now)
            }
            None => {}
        }
    }

    fn go_on(&mut self, key: usize) {
        if let Some(due) = self.backlog.pop_front() {
            self.ask(key, due);
        } else if self.drive.rate == 0.0 && now_nanos() < self.window.1 {
            self.ask(key, now_nanos());
        } else {
            self.free.push_back(key);
        }
    }

    fn lose(&mut self, key: usize, why: &str) {
        if let Some(client) = self.clients.try_remove(key) {
            self.asked -= usize::from(!client.is_ready());
        }
        self.report.fail(why);
    }

    fn count_unanswered(&mut self) {
        let now = now_nanos();
        let asked = self.clients.iter().filter(|(_, client)| !client.is_ready());
        let late: Vec<_> = asked.map(|(_, client)| client.asked).collect();
        let never_sent = self.backlog.iter().map(|due| (*due, now));
        for (due, sent) in late.into_iter().chain(never_sent.collect::<Vec<_>>()) {
            if (self.window.0..self.window.1).contains(&due) {
                self.report.unanswered += 1;
                self.report.record(due, sent, now);
            }
        }
    }
}

/// xorshift64*: good enough to spread moments.
struct Random(u64);

impl Random {
    /// Exponentially distributed with this mean, at least 1.
    fn exponential(&mut self, mean: f64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let uniform =
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        ((-(1.0 - uniform).ln() * mean) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_mean_they_should() {
        let mut random = Random(42);
        let sum: u64 = (0..100_000).map(|_| random.exponential(1000.0)).sum();
        assert!((98_000_000..102_000_000).contains(&sum), "{sum}");
    }
}
