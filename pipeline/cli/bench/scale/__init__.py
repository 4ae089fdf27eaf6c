"""What must not grow with the data: how work begins, on a whole manifest (`startup`) and on one in
parts (`parts`), and how often workers can meet (`leases`)."""
