"""`python -m lorascope.stats.simulate`: the table of type I errors and coverage in docs/statistics.md."""

from lorascope.stats.simulate.quality import main

if __name__ == "__main__":
    main()
