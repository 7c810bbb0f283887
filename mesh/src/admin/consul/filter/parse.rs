//! The text of a filter → what it says, in Consul's own grammar. What it is about is not known here.
//!
//! Recursive descent. Bounded: a text has a longest length, grouping a greatest depth, and an expression a greatest number of
//! comparisons, so that neither the stack nor the evaluation over many rows is the asker's to choose.

/// The longest filter, in bytes.
pub(super) const LONGEST: usize = 4096;
/// The deepest nesting of `not` and parentheses.
pub(super) const DEEPEST: usize = 32;
/// The most comparisons of one filter.
pub(super) const COMPARISONS: usize = 128;

/// What a filter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// `or`
    Any(Vec<Self>),
    /// `and`
    All(Vec<Self>),
    Not(Box<Self>),
    Compares(Comparison),
}

/// One comparison of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Comparison {
    /// The names of the field, from the outermost.
    pub(super) selector: Vec<String>,
    pub(super) operator: Operator,
    /// Holds where the operator does not.
    pub(super) negated: bool,
    /// What it is compared with; nothing for [`Operator::Empty`].
    pub(super) value: String,
}

/// What a comparison asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    /// `==`
    Equals,
    /// `contains`, and `in` the other way round
    Contains,
    /// `is empty`
    Empty,
    /// `matches`
    Matches,
}

impl Expression {
    /// How many comparisons ask this.
    pub(super) fn count(&self, operator: Operator) -> usize {
        match self {
            Self::Any(parts) | Self::All(parts) => parts.iter().map(|part| part.count(operator)).sum(),
            Self::Not(of) => of.count(operator),
            Self::Compares(comparison) => usize::from(comparison.operator == operator),
        }
    }
}

/// Reads a filter.
pub(super) fn parse(text: &str) -> Result<Expression, String> {
    if text.len() > LONGEST {
        return Err(format!("it has {} bytes, and at most {LONGEST} are read", text.len()));
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, comparisons: 0 };
    let expression = parser.any(0)?;
    match parser.take() {
        None => Ok(expression),
        Some(token) => Err(unexpected(Some(&token), "`and`, `or` or the end")),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Equals,
    Differs,
    /// A keyword, a selector or a value without quotes: its names.
    Word(Vec<String>),
    Quoted(String),
    Number(String),
}

impl Token {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(names) if *names == [word])
    }

    /// As it stands in an error.
    fn shown(&self) -> String {
        match self {
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Equals => "`==`".to_owned(),
            Self::Differs => "`!=`".to_owned(),
            Self::Word(names) => format!("`{}`", names.join(".")),
            Self::Quoted(text) => format!("{text:?}"),
            Self::Number(text) => format!("`{text}`"),
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    comparisons: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.next += 1;
        token
    }

    /// Takes the word if it is the next one.
    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.peek().is_some_and(|token| token.is_word(word));
        self.next += usize::from(is_next);
        is_next
    }

    fn any(&mut self, depth: usize) -> Result<Expression, String> {
        let mut parts = vec![self.all(depth)?];
        while self.takes("or") {
            parts.push(self.all(depth)?);
        }
        Ok(single(parts, Expression::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Expression, String> {
        let mut parts = vec![self.not(depth)?];
        while self.takes("and") {
            parts.push(self.not(depth)?);
        }
        Ok(single(parts, Expression::All))
    }

    fn not(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > DEEPEST {
            return Err(format!("`not` and parentheses are nested deeper than {DEEPEST} times"));
        }
        if self.takes("not") {
            return self.not(depth + 1).map(|of| Expression::Not(Box::new(of)));
        }
        if self.peek() != Some(&Token::Open) {
            return self.comparison().map(Expression::Compares);
        }
        self.next += 1;
        let inner = self.any(depth + 1)?;
        match self.take() {
            Some(Token::Close) => Ok(inner),
            other => Err(unexpected(other.as_ref(), "`)`")),
        }
    }

    fn comparison(&mut self) -> Result<Comparison, String> {
        self.comparisons += 1;
        if self.comparisons > COMPARISONS {
            return Err(format!("it has more than {COMPARISONS} comparisons"));
        }
        let first = self.take();
        let after = self.take();
        let mut negated = after.as_ref().is_some_and(|token| token.is_word("not"));
        let operator = if negated { self.take() } else { after };
        let word = match &operator {
            Some(Token::Word(names)) if names.len() == 1 => names[0].as_str(),
            Some(Token::Equals) if !negated => "==",
            Some(Token::Differs) if !negated => "!=",
            _ => "",
        };
        if word == "in" {
            let value = value(first)?;
            let selector = selector(self.take())?;
            return Ok(Comparison { selector, operator: Operator::Contains, negated, value });
        }
        let selector = selector(first)?;
        let operator = match word {
            "==" => Operator::Equals,
            "!=" => {
                negated = true;
                Operator::Equals
            }
            "contains" => Operator::Contains,
            "matches" => Operator::Matches,
            "is" if !negated => {
                negated = self.takes("not");
                if !self.takes("empty") {
                    return Err(unexpected(self.take().as_ref(), "`empty`"));
                }
                return Ok(Comparison { selector, operator: Operator::Empty, negated, value: String::new() });
            }
            _ => {
                let known =
                    "`==`, `!=`, `contains`, `in`, `matches` (or `not` before the last three) or `is empty`";
                return Err(unexpected(operator.as_ref(), known));
            }
        };
        Ok(Comparison { selector, operator, negated, value: value(self.take())? })
    }
}

fn unexpected(found: Option<&Token>, expected: &str) -> String {
    match found {
        Some(token) => format!("{} is not {expected}", token.shown()),
        None => format!("it ends where {expected} is expected"),
    }
}

fn selector(token: Option<Token>) -> Result<Vec<String>, String> {
    match token {
        Some(Token::Word(names)) => Ok(names),
        other => Err(unexpected(other.as_ref(), "a selector such as `Service.Meta.team`")),
    }
}

fn value(token: Option<Token>) -> Result<String, String> {
    match token {
        Some(Token::Word(names)) => Ok(names.join(".")),
        Some(Token::Quoted(text) | Token::Number(text)) => Ok(text),
        other => Err(unexpected(other.as_ref(), "a value such as \"v2\"")),
    }
}

fn single(mut parts: Vec<Expression>, of: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            of(parts)
        }
        None => of(parts),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let (token, after) = match first {
            '(' => (Token::Open, &rest[1..]),
            ')' => (Token::Close, &rest[1..]),
            '=' if rest.starts_with("==") => (Token::Equals, &rest[2..]),
            '!' if rest.starts_with("!=") => (Token::Differs, &rest[2..]),
            '"' | '`' => quoted(rest).map(|(text, after)| (Token::Quoted(text), after))?,
            '-' | '0'..='9' => number(rest)?,
            'a'..='z' | 'A'..='Z' => word(rest)?,
            _ => return Err(format!("{first:?} begins nothing that is known")),
        };
        tokens.push(token);
        rest = after;
    }
}

/// A text in quotes, without them, and what is behind it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let raw = text.starts_with('`');
    let quote = if raw { '`' } else { '"' };
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Ok((value, &text[at + 1..])),
            '\\' if !raw => value.push(match characters.next().map(|(_, escaped)| escaped) {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(plain @ ('\\' | '"')) => plain,
                _ => return Err("a `\\` in quotes is written `\\\\`, or in backquotes as it is".to_owned()),
            }),
            _ => value.push(character),
        }
    }
    Err(format!("there is no second {quote}"))
}

/// `-8080`, `1.5`: what follows is not glued to it.
fn number(text: &str) -> Result<(Token, &str), String> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let length = text.len() - unsigned.len() + digits;
    let (number, after) = text.split_at(length);
    let is_apart = after.chars().next().is_none_or(|next| next.is_ascii_whitespace() || next == ')');
    if number.parse::<f64>().is_err() || !is_apart {
        let shown: String = text.chars().take_while(|c| !c.is_ascii_whitespace()).take(40).collect();
        return Err(format!("`{shown}` is no number; a text that begins so is put in quotes"));
    }
    Ok((Token::Number(number.to_owned()), after))
}

/// `Service.Meta.team`, `Service.Meta["a team"]`.
fn word(text: &str) -> Result<(Token, &str), String> {
    let identifier = |text: &str| {
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
        let is_of_it = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '/';
        let length = text.find(|c: char| !is_of_it(c)).unwrap_or(text.len());
        begins.then_some(length)
    };
    let (mut names, mut rest) = (Vec::new(), text);
    loop {
        let Some(length) = identifier(rest) else {
            return Err(format!("a name is expected behind `{}`", &text[..text.len() - rest.len()]));
        };
        names.push(rest[..length].to_owned());
        rest = &rest[length..];
        while let Some(index) = rest.strip_prefix('[') {
            let index = index.trim_start();
            if !index.starts_with(['"', '`']) {
                return Err(format!("a name in quotes is expected behind `{}[`", names.join(".")));
            }
            let (name, after) = quoted(index)?;
            names.push(name);
            rest = after.trim_start().strip_prefix(']').ok_or("there is no `]`")?;
        }
        match rest.strip_prefix('.') {
            Some(next) => rest = next,
            None => return Ok((Token::Word(names), rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compares(selector: &[&str], operator: Operator, negated: bool, value: &str) -> Expression {
        let selector = selector.iter().map(|&name| name.to_owned()).collect();
        Expression::Compares(Comparison { selector, operator, negated, value: value.to_owned() })
    }

    #[test]
    fn every_form_of_a_comparison_is_read() {
        let tags = &["Service", "Tags"];
        for (text, expected) in [
            (r#"Service.Tags contains "v2""#, compares(tags, Operator::Contains, false, "v2")),
            ("Service.Tags contains v2", compares(tags, Operator::Contains, false, "v2")),
            ("Service.Tags not contains `v2`", compares(tags, Operator::Contains, true, "v2")),
            (r#""v2" in Service.Tags"#, compares(tags, Operator::Contains, false, "v2")),
            ("v2 not in Service.Tags", compares(tags, Operator::Contains, true, "v2")),
            ("Service.Tags is empty", compares(tags, Operator::Empty, false, "")),
            ("Service.Tags is not empty", compares(tags, Operator::Empty, true, "")),
            (r#"Node=="a""#, compares(&["Node"], Operator::Equals, false, "a")),
            ("Service.Port != 80", compares(&["Service", "Port"], Operator::Equals, true, "80")),
            (r#"Node matches "a\\d""#, compares(&["Node"], Operator::Matches, false, r"a\d")),
            (r"Node not matches `a\d`", compares(&["Node"], Operator::Matches, true, r"a\d")),
            (r#"Meta[ "a b" ].c == -1.5"#, compares(&["Meta", "a b", "c"], Operator::Equals, false, "-1.5")),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn and_binds_more_tightly_than_or_and_not_more_than_both() {
        let is = |name: &str| compares(&[name], Operator::Equals, false, "1");
        let text = "a == 1 or not b == 1 and c == 1 or (d == 1 or e == 1) and f == 1";
        let expected = Expression::Any(vec![
            is("a"),
            Expression::All(vec![Expression::Not(Box::new(is("b"))), is("c")]),
            Expression::All(vec![Expression::Any(vec![is("d"), is("e")]), is("f")]),
        ]);
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, named) in [
            ("", "it ends where a selector"),
            ("Node", "it ends where `==`"),
            ("Node == ", "it ends where a value"),
            ("Node = 1", "'='"),
            ("Node == \"a", "no second \""),
            ("Node == 1 Node == 2", "`Node` is not `and`"),
            ("(Node == 1", "it ends where `)`"),
            ("Node is full", "is not `empty`"),
            ("\"a\" == Node", "is not a selector"),
            ("\"a\" in \"b\"", "is not a selector"),
            ("Node == 8x", "`8x` is no number"),
            ("Node. == 1", "behind `Node.`"),
            ("Node[1] == 1", "in quotes is expected behind `Node[`"),
            ("Node[\"a\" == 1", "no `]`"),
            (r#"Node == "\d""#, r"is written `\\`"),
            ("all Checks as c { c == 1 }", "'{' begins nothing"),
            ("Node > 1", "'>'"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }

    #[test]
    fn size_depth_and_comparisons_are_bounded() {
        let deep = |depth: usize| format!("{}a == 1{}", "(".repeat(depth), ")".repeat(depth));
        assert!(parse(&deep(DEEPEST)).is_ok());
        assert!(parse(&deep(DEEPEST + 1)).unwrap_err().contains("nested"));
        assert!(parse(&format!("{}a == 1", "not ".repeat(1000))).unwrap_err().contains("nested"));
        let many = |count: usize| vec!["a == 1"; count].join(" or ");
        assert!(parse(&many(COMPARISONS)).is_ok());
        assert!(parse(&many(COMPARISONS + 1)).unwrap_err().contains("comparisons"));
        assert!(parse(&"a".repeat(LONGEST + 1)).unwrap_err().contains("bytes"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_row_of_words_makes_it_panic(words in proptest::collection::vec(
            prop_oneof![
                Just("not"), Just("and"), Just("or"), Just("("), Just(")"), Just("in"), Just("is"), Just("empty"), Just("contains"),
                Just("matches"), Just("=="), Just("!="), Just("a.b"), Just("a[\"é\"]"), Just("\"v\""), Just("`v`"), Just("1"), Just("-"),
                Just("\""), Just("a["),
            ],
            0..24,
        )) {
            let _ = parse(&words.join(" "));
            let _ = parse(&words.concat());
        }
    }
}
