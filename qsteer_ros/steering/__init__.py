"""Ways to bend a frozen velocity field towards a critic's gradient; one file per idea."""
