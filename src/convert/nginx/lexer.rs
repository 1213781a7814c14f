//! nginx's grammar: words, quotes, escapes, blocks, comments, and `include`.

use std::path::{Path, PathBuf};

use crate::convert::sources::{Mistake, Place, Source, Sources};

/// How deep blocks may nest; nginx itself knows six levels.
const MAX_NESTING: usize = 64;

/// `name argument…;` or `name argument… { … }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) place: Place,
    pub(super) block: Option<Vec<Self>>,
}

impl Directive {
    /// The first argument; empty where there is none.
    pub(super) fn value(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }

    pub(super) fn is_on(&self) -> bool {
        self.value().eq_ignore_ascii_case("on")
    }
}

/// What could not be read where it does not matter: includes within `http` and `mail`.
pub(super) type Unread = Vec<Mistake>;

/// Reads a file with all that it includes. Relative includes count from `base`, the directory of the
/// main file, whichever file they stand in.
///
/// # Errors
/// What nginx could not read either; an include that cannot be read, unless it is within `http` or
/// `mail`, of which nothing is carried.
pub(super) fn read(
    source: &Source,
    sources: &mut Sources<'_>,
    base: &Path,
) -> Result<(Vec<Directive>, Unread), Mistake> {
    let mut unread = Vec::new();
    let mut files = Files {
        sources,
        base,
        unread: &mut unread,
    };
    let directives = files.file(
        source,
        Context {
            depth: 0,
            matters: true,
        },
    )?;
    Ok((directives, unread))
}

struct Files<'a, 's> {
    sources: &'a mut Sources<'s>,
    base: &'a Path,
    unread: &'a mut Unread,
}

/// Where in the tree a piece of text stands.
#[derive(Clone, Copy)]
struct Context {
    depth: usize,
    /// Whether anything in here could be carried.
    matters: bool,
}

impl Files<'_, '_> {
    fn file(&mut self, source: &Source, context: Context) -> Result<Vec<Directive>, Mistake> {
        let mut lexer = Lexer::new(source);
        let directives = self.block(&mut lexer, context, None)?;
        Ok(directives)
    }

    /// Directives up to the closing brace, or to the end of the file where `opened` is `None`.
    fn block(
        &mut self,
        lexer: &mut Lexer<'_>,
        context: Context,
        opened: Option<&Place>,
    ) -> Result<Vec<Directive>, Mistake> {
        let mut directives = Vec::new();
        loop {
            let mut words: Vec<String> = Vec::new();
            let mut place = None;
            let end = loop {
                let (token, at) = lexer.next()?;
                match token {
                    Token::Word(word) => {
                        place.get_or_insert(at);
                        words.push(word);
                    }
                    other => break (other, at),
                }
            };
            let mut words = words.into_iter();
            let directive = words.next().zip(place).map(|(name, place)| Directive {
                name,
                arguments: words.collect(),
                place,
                block: None,
            });
            match (end, directive) {
                ((Token::End, _), None) => {
                    return match opened {
                        None => Ok(directives),
                        Some(opened) => Err(Mistake::new(
                            opened,
                            "the block is never closed",
                            "write the missing }",
                        )),
                    };
                }
                ((Token::Close, at), None) => {
                    return match opened {
                        Some(_) => Ok(directives),
                        None => Err(Mistake::new(&at, "this } closes nothing", "remove it")),
                    };
                }
                ((Token::End | Token::Close, _), Some(directive)) => {
                    return Err(Mistake::new(
                        &directive.place,
                        format!("{} does not end in ;", directive.name),
                        "write the missing ;",
                    ));
                }
                ((Token::Semicolon, at), None) => {
                    return Err(Mistake::new(&at, "this ; ends nothing", "remove it"));
                }
                ((Token::Open, at), None) => {
                    return Err(Mistake::new(
                        &at,
                        "this { has no name before it",
                        "remove it",
                    ));
                }
                ((Token::Semicolon, _), Some(directive)) if directive.name == "include" => {
                    self.include(&directive, context, &mut directives)?;
                }
                ((Token::Semicolon, _), Some(directive)) => directives.push(directive),
                ((Token::Open, at), Some(mut directive)) => {
                    if context.depth >= MAX_NESTING {
                        return Err(Mistake::new(
                            &at,
                            format!("blocks nest more than {MAX_NESTING} deep"),
                            "mend the braces",
                        ));
                    }
                    if directive.name.ends_with("_by_lua_block") {
                        lexer.skip_foreign_block(&at)?;
                        directive.block = Some(Vec::new());
                    } else {
                        let inner = Context {
                            depth: context.depth + 1,
                            matters: context.matters
                                && !matches!(&*directive.name, "http" | "mail"),
                        };
                        let place = directive.place.clone();
                        directive.block = Some(self.block(lexer, inner, Some(&place))?);
                    }
                    directives.push(directive);
                }
                ((Token::Word(_), _), _) => unreachable!("words are gathered above"),
            }
        }
    }

    fn include(
        &mut self,
        directive: &Directive,
        context: Context,
        directives: &mut Vec<Directive>,
    ) -> Result<(), Mistake> {
        let read = self.include_all(directive, context, directives);
        match read {
            // Of what is in there nothing is carried anyway.
            Err(mistake) if !context.matters => {
                self.unread.push(mistake);
                Ok(())
            }
            other => other,
        }
    }

    fn include_all(
        &mut self,
        directive: &Directive,
        context: Context,
        directives: &mut Vec<Directive>,
    ) -> Result<(), Mistake> {
        let [pattern] = &*directive.arguments else {
            return Err(Mistake::new(
                &directive.place,
                "include takes one file or pattern",
                "write one include for each",
            ));
        };
        let path = self.base.join(pattern);
        for path in self.matching(&path, &directive.place)? {
            let base = self.base;
            let unread = &mut *self.unread;
            let inside = self
                .sources
                .included(&path, &directive.place, |sources, source| {
                    let mut files = Files {
                        sources,
                        base,
                        unread,
                    };
                    files.file(&source, context)
                })?;
            directives.extend(inside);
        }
        Ok(())
    }

    /// The files that a pattern names; for a plain path that path, whether it is there or not.
    fn matching(&self, path: &Path, place: &Place) -> Result<Vec<PathBuf>, Mistake> {
        let is_pattern = |text: &str| text.contains(['*', '?', '[']);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let directory = path.parent().unwrap_or(path);
        if is_pattern(&directory.to_string_lossy()) {
            return Err(Mistake::new(
                place,
                "the include has a pattern in the name of a directory, which is not followed here",
                "write one include for each directory, or name the included files on the command line",
            ));
        }
        if !is_pattern(name) {
            return Ok(vec![path.to_owned()]);
        }
        // No file, or no directory, is no mistake of a pattern.
        let names = self.sources.list(directory).unwrap_or_default();
        Ok(names
            .iter()
            .filter(|candidate| glob(name, candidate))
            .map(|name| directory.join(name))
            .collect())
    }
}

/// `*`, `?` and `[…]` as glob(3) takes them; names that begin with a dot want one in the pattern.
fn glob(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    // Where to go on if the text after the last * turns out not to fit: one character further.
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            retry = Some((p + 1, n));
            p += 1;
            continue;
        }
        match one(&pattern[p..], name[n]) {
            Some(length) => {
                p += length;
                n += 1;
            }
            None => match retry {
                Some((after, at)) => {
                    retry = Some((after, at + 1));
                    (p, n) = (after, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether the pattern's first element takes `c`: how long that element is.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            let close = 2 + pattern.get(2..)?.iter().position(|c| *c == ']')?;
            let inside = &pattern[1..close];
            let (negated, inside) = match inside.first() {
                Some('!' | '^') => (true, &inside[1..]),
                _ => (false, inside),
            };
            let mut found = false;
            let mut at = 0;
            while at < inside.len() {
                if inside.get(at + 1) == Some(&'-') && at + 2 < inside.len() {
                    found |= (inside[at]..=inside[at + 2]).contains(&c);
                    at += 3;
                } else {
                    found |= inside[at] == c;
                    at += 1;
                }
            }
            (found != negated).then_some(close + 1)
        }
        first => (*first == c).then_some(1),
    }
}

enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
    End,
}

struct Lexer<'s> {
    source: &'s Source,
    rest: std::iter::Peekable<std::str::Chars<'s>>,
    line: usize,
}

impl<'s> Lexer<'s> {
    fn new(source: &'s Source) -> Self {
        Self {
            source,
            rest: source.text.chars().peekable(),
            line: 1,
        }
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    /// The next token, and where it begins.
    fn next(&mut self) -> Result<(Token, Place), Mistake> {
        loop {
            let place = self.source.at(self.line);
            let Some(c) = self.bump() else {
                return Ok((Token::End, place));
            };
            let token = match c {
                c if c.is_ascii_whitespace() => continue,
                '#' => {
                    while self.bump().is_some_and(|c| c != '\n') {}
                    continue;
                }
                ';' => Token::Semicolon,
                '{' => Token::Open,
                '}' => Token::Close,
                '"' | '\'' => Token::Word(self.quoted(c, &place)?),
                c => Token::Word(self.bare(c)),
            };
            return Ok((token, place));
        }
    }

    fn quoted(&mut self, quote: char, place: &Place) -> Result<String, Mistake> {
        let mut word = String::new();
        loop {
            match self.bump() {
                None => {
                    return Err(Mistake::new(
                        place,
                        format!("the text that begins with {quote} never ends"),
                        "write the closing quote",
                    ));
                }
                Some(c) if c == quote => break,
                Some('\\') => self.escape(&mut word),
                Some(c) => word.push(c),
            }
        }
        match self.rest.peek() {
            None | Some(';' | '{' | ')') => Ok(word),
            Some(c) if c.is_ascii_whitespace() => Ok(word),
            Some(c) => Err(Mistake::new(
                &self.source.at(self.line),
                format!("{c:?} stands right behind a closing quote"),
                "write a blank or ; there",
            )),
        }
    }

    fn bare(&mut self, first: char) -> String {
        let mut word = String::new();
        let mut last = first;
        match first {
            '\\' => self.escape(&mut word),
            first => word.push(first),
        }
        while let Some(c) = self.rest.peek().copied() {
            // ${name} is part of a word; any other { begins a block.
            let ends = c.is_ascii_whitespace() || c == ';' || (c == '{' && last != '$');
            if ends {
                break;
            }
            self.bump();
            match c {
                '\\' => self.escape(&mut word),
                c => word.push(c),
            }
            last = c;
        }
        word
    }

    /// What stands for a backslash and the next character.
    fn escape(&mut self, word: &mut String) {
        match self.rest.peek().copied() {
            Some(c @ ('"' | '\'' | '\\')) => {
                self.bump();
                word.push(c);
            }
            Some(c @ ('t' | 'r' | 'n')) => {
                self.bump();
                word.push(match c {
                    't' => '\t',
                    'r' => '\r',
                    _ => '\n',
                });
            }
            // Any other backslash stays, and protects what follows.
            Some(c) => {
                self.bump();
                word.push('\\');
                word.push(c);
            }
            None => word.push('\\'),
        }
    }

    /// Skips Lua up to the brace that closes it.
    fn skip_foreign_block(&mut self, opened: &Place) -> Result<(), Mistake> {
        let mut depth = 1;
        while depth > 0 {
            match self.bump() {
                Some('{') => depth += 1,
                Some('}') => depth -= 1,
                Some(_) => {}
                None => {
                    return Err(Mistake::new(
                        opened,
                        "the block is never closed",
                        "write the missing }",
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<String>, String> {
        let source = Source {
            name: "f".into(),
            path: "/f".into(),
            text: text.to_owned(),
        };
        let mut lexer = Lexer::new(&source);
        let mut words = Vec::new();
        loop {
            match lexer.next().map_err(|it| it.to_string())?.0 {
                Token::Word(word) => words.push(word),
                Token::Semicolon => words.push("<;>".into()),
                Token::Open => words.push("<{>".into()),
                Token::Close => words.push("<}>".into()),
                Token::End => return Ok(words),
            }
        }
    }

    #[test]
    fn words_are_nginx_s() {
        for (text, expected) in [
            ("a b;", &["a", "b", "<;>"][..]),
            ("a{b c;}", &["a", "<{>", "b", "c", "<;>", "<}>"]),
            ("a # b;\nc;", &["a", "c", "<;>"]),
            ("a#b;", &["a#b", "<;>"]),
            (r#"a "b c;{}" 'd "e"';"#, &["a", "b c;{}", "d \"e\"", "<;>"]),
            (
                r#"a "b\"c" 'd\'e' "f\\g" "h\d";"#,
                &["a", "b\"c", "d'e", "f\\g", "h\\d", "<;>"],
            ),
            (r"a b\;c d\ e;", &["a", "b\\;c", "d\\ e", "<;>"]),
            ("a ${b}c $d;", &["a", "${b}c", "$d", "<;>"]),
            ("a b\"c;", &["a", "b\"c", "<;>"]),
            ("a \"\";", &["a", "", "<;>"]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        assert!(words("a \"b").unwrap_err().contains("never ends"));
        assert!(words("a \"b\"c;").unwrap_err().contains("closing quote"));
    }

    #[test]
    fn patterns_match_as_glob_does() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".a.conf", false),
            ("*.conf", "a.conf.bak", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x[!0-9]", "bxy", true),
            ("[a-c]x[!0-9]", "bx1", false),
            ("[]]", "]", true),
            ("[x", "[x", false),
            ("*", "", true),
            ("é*", "éa", true),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
