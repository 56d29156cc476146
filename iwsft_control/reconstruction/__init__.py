"""How data like D4RL's are made: soft actor-critic, its runs, and what is accepted."""
