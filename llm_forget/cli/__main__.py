"""``python -m llm_forget.cli`` is the installed command."""

from llm_forget.cli.main import main

if __name__ == "__main__":
    main()
