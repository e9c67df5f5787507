"""Between messages and tokens: templates, thinking, tools, and the grammars they make."""
