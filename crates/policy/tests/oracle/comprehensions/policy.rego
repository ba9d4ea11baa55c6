# Comprehensions of arrays, sets and objects, nested and over what is not there.
package waxseal

default allow := false

allow if count(problems) == 0

texts := [text |
	some name, value in input.caller.attributes
	text := concat(":", [name, as_text(value)])
]

as_text(value) := value if is_string(value)

as_text(value) := concat("+", value) if is_array(value)

by_length[length] := names if {
	some value in input.context
	length := count(value)
	names := {name | some name, other in input.context; count(other) == length}
}

lengths := {name: count(value) | some name, value in input.context}

problems contains {"texts": texts} if count(texts) > 3

problems contains {"lengths": [[length, by_length[length]] | some length, _ in by_length]} if {
	max([length | some length, _ in by_length]) > 8
}

problems contains {name: longer} if {
	some name, length in lengths
	longer := [other | some other, more in lengths; more > length]
	count(longer) > 2
}

deny_reason := problems
