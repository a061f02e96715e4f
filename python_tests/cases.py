"""The one list of cases, shared by the tests of every engine and by bench/."""
