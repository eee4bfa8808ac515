"""``python -m kitfs.daemon``: what ``kitfs.client`` starts when no daemon answers."""

from kitfs.daemon.main import main

main()
