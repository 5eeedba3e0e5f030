"""`python -m dmpo_trl.cli`, which is what `accelerate launch -m` needs."""

from . import main

main()
