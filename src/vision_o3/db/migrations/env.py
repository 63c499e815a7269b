"""What Alembic runs: the caller gives the connection, in a transaction of its own."""

from alembic import context

from vision_o3.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
